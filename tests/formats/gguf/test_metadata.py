"""What a file says of its model, its header read back by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hermetiq.errors import Refusal
from hermetiq.formats.gguf import GgufHeader, plan
from hermetiq.formats.gguf.metadata import padded
from hermetiq.model import SpecialIds, Token, TokenKind, Vocabulary
from tests.formats.gguf.small import CONFIG, IDS, NARROW, ROWS, header, vocabulary
from tests.oracles import gguf_bytes

BPE = Vocabulary(
    "gpt2",
    "qwen2",
    (
        *(Token(text, TokenKind.NORMAL) for text in ("a", "b", "ab")),
        Token("<|im_end|>", TokenKind.CONTROL),
        Token("<|endoftext|>", TokenKind.CONTROL),
    ),
    ("a b",),
    add_space_prefix=False,
)


def written(head: GgufHeader, recipe: str = "Q4_K_M") -> dict[str, Any]:
    return gguf_bytes.parse(plan(head, recipe).header).metadata


def test_a_llama_header_holds_every_key_by_hand() -> None:
    found = written(header(CONFIG, license="apache-2.0", base_models=("Org/Base-7B", "/home/someone/models/other")))
    tokens = vocabulary().tokens
    assert found == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "small",
        "general.license": "apache-2.0",
        "general.file_type": 15,
        "general.quantization_version": 2,
        "general.base_model.count": 2,
        "general.base_model.0.name": "Base-7B",
        "general.base_model.0.organization": "Org",
        "general.base_model.1.name": "other",
        "llama.vocab_size": ROWS,
        "llama.context_length": 512,
        "llama.embedding_length": 256,
        "llama.block_count": 9,
        "llama.feed_forward_length": 256,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 32,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [token.text for token in tokens],
        "tokenizer.ggml.scores": [token.score for token in tokens],
        "tokenizer.ggml.token_type": [int(token.kind) for token in tokens],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.chat_template": "{{ messages }}",
    }


def test_a_bpe_header_holds_merges_and_every_id_explicitly() -> None:
    ids = SpecialIds(eos=3, eot=3, eom=4, bos=None, pad=4, unk=None, add_bos=False, add_eos=False)
    qwen = replace(NARROW, family="qwen2", attention_bias=True, rows=8)
    found = written(header(qwen, vocabulary=BPE, ids=ids))
    assert found["general.architecture"] == "qwen2"
    assert found["tokenizer.ggml.merges"] == ["a b"]
    assert found["tokenizer.ggml.pre"] == "qwen2"
    assert {key.removeprefix("tokenizer.ggml."): value for key, value in found.items() if key.endswith("token_id")} == {
        "eos_token_id": 3,
        "eot_token_id": 3,
        "eom_token_id": 4,
        "padding_token_id": 4,
    }
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert "tokenizer.ggml.scores" not in found


def test_head_size_is_stated_where_it_does_not_follow_from_the_width() -> None:
    found = written(header(replace(CONFIG, head_dim=64)))
    assert (found["llama.attention.key_length"], found["llama.attention.value_length"]) == (64, 64)
    assert found["llama.rope.dimension_count"] == 64


def test_sliding_window_and_rotary_scaling_are_stated() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    found = written(header(replace(CONFIG, sliding_window=64, rope_scaling=yarn, rope_theta=1e6)))
    assert found["llama.attention.sliding_window"] == 64
    assert found["llama.rope.freq_base"] == 1e6
    assert found["llama.rope.scaling.type"] == "yarn"
    assert found["llama.rope.scaling.factor"] == 4.0
    assert found["llama.rope.scaling.original_context_length"] == 128


@pytest.mark.parametrize(("recipe", "number"), [("F32", 0), ("F16", 1), ("Q8_0", 7), ("Q3_K_L", 13), ("BF16", 32)])
def test_file_type_is_llama_cpps_number(recipe: str, number: int) -> None:
    assert written(header(CONFIG), recipe)["general.file_type"] == number


def test_rows_without_a_token_are_named_and_unused() -> None:
    tokens = padded(BPE, 8)
    assert [token.text for token in tokens[5:]] == ["[PAD5]", "[PAD6]", "[PAD7]"]
    assert {token.kind for token in tokens[5:]} == {TokenKind.UNUSED}
    assert tokens[:5] == BPE.tokens


def test_padding_never_takes_a_text_that_the_vocabulary_has() -> None:
    taken = replace(BPE, tokens=(*BPE.tokens, Token("[PAD7]", TokenKind.NORMAL), Token("[[PAD7]]", TokenKind.NORMAL)))
    texts = [token.text for token in padded(taken, 9)]
    assert len(set(texts)) == 9
    assert texts[7:] == ["[[[PAD7]]]", "[PAD8]"]


@pytest.mark.parametrize(
    ("vocabulary", "rows", "rule"),
    [
        (BPE, 4, "vocab-overflow"),
        (replace(BPE, tokens=(*BPE.tokens, Token("ab", TokenKind.UNUSED))), 8, "duplicate-token"),
        (replace(BPE, pre=""), 8, "pretokenizer-unknown"),
    ],
)
def test_a_vocabulary_that_llama_cpp_would_not_load_is_refused_by_rule(
    vocabulary: Vocabulary, rows: int, rule: str
) -> None:
    with pytest.raises(Refusal) as refusal:
        plan(header(replace(CONFIG, rows=rows), vocabulary=vocabulary, ids=replace(IDS, eos=3)), "F32")
    assert [found.rule for found in refusal.value.findings] == [rule]


def test_tensor_table_by_hand() -> None:
    planned = plan(header(NARROW), "Q4_K_M")
    parsed = gguf_bytes.parse(planned.header)
    assert parsed.version == 3
    assert parsed.data == len(planned.header)
    assert list(parsed.tensors) == [tensor.name for tensor in planned.tensors]
    offset = 0
    for tensor in planned.tensors:
        entry = parsed.tensors[tensor.name]
        assert entry.dimensions == tensor.shape[::-1]
        assert entry.type == int(tensor.choice.type)
        assert entry.offset == offset
        offset += -(-tensor.bytes // 32) * 32
    assert parsed.data + offset == planned.size


def test_the_plan_shows_what_fallbacks_cost() -> None:
    wide, narrow = plan(header(CONFIG), "Q4_K_M"), plan(header(NARROW), "Q4_K_M")
    assert wide.fallback_share == 0
    assert wide.bits_per_weight == pytest.approx(wide.nominal_bits_per_weight)
    assert narrow.fallback_share > 0.99
    assert narrow.nominal_bits_per_weight < 6 < narrow.bits_per_weight
