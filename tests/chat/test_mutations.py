"""The Hermes-like checkpoint, broken once for each rule: the rule finds it, by name, and no other rule cries wolf."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hermetiq.chat.checks import CHECKS
from hermetiq.chat.inspect import Inspection, inspect
from hermetiq.checkpoint.documents import RECIPE
from hermetiq.rules import RULES
from tests.chat.templates import CHATML
from tests.chat.test_template import HOSTILE
from tests.fixtures.models import copy_of, edit_json, tiny_checkpoint, write_json

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
IM_END = 32000


@dataclass(frozen=True)
class Mutation:
    """One way to break the folder, and where the finding must point."""

    rule: str
    apply: Callable[[Path], None]
    file: str
    field: str = ""
    found: str = ""
    """Part of what the finding says it found."""
    rows: int | None = None
    """Rows of the embedding to begin with, where not those of the tokenizer."""
    severity: str | None = None
    """Where it is not the rule's own."""
    parent: str = ""
    """Folder beside the broken one that it is held against."""


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})


def edit_tokenizer(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(document)
    write_json(folder / "tokenizer.json", document)


def set_json(file: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / file, **changes)


def set_template(text: str | None) -> Callable[[Path], None]:
    return set_json("tokenizer_config.json", chat_template=text)


def set_row(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    """Replace the terminator's row of one tensor by `value` of the whole tensor."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name][IM_END] = value(tensors[name].float()).to(tensors[name].dtype)

    return lambda folder: edit_weights(folder, change)


def edit(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder, change)


def set_value(name: str, value: float) -> Callable[[Path], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[3] = value

    return lambda folder: edit_weights(folder, change)


def tag_as_plain_piece(folder: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["added_tokens"] = [token for token in document["added_tokens"] if token["id"] != IM_END]
        document["model"]["vocab"]["<|im_end|>"] = IM_END

    edit_tokenizer(folder, change)


def second_the(folder: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["added_tokens"].append({**document["added_tokens"][-1], "id": 32002, "content": "▁the"})

    edit_tokenizer(folder, change)
    edit_json(folder / "added_tokens.json", **{"▁the": 32002})


def letters_apart(folder: Path) -> None:
    step = {"type": "Split", "pattern": {"String": "e"}, "behavior": "Isolated", "invert": False}
    edit_tokenizer(folder, lambda document: document.update(pre_tokenizer=step))


def forget_added_tokens(folder: Path) -> None:
    (folder / "added_tokens.json").unlink()
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder={})


def rename_piece(folder: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        vocabulary = document["model"]["vocab"]
        vocabulary["ẘẘẘ"] = vocabulary.pop("梦")

    edit_tokenizer(folder, change)


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-100])


def swapped_parent(folder: Path) -> None:
    """A parent with the two tags the other way round, and a recipe that says that the tokenizers were joined."""
    parent = copy_of(folder, folder.with_name("parent"))
    set_value(NORM, 1.5)(parent)
    text = (parent / TOKENIZER).read_text(encoding="utf-8")
    swapped = text.replace("<|im_end", "<|?").replace("<|im_start", "<|im_end").replace("<|?", "<|im_start")
    (parent / TOKENIZER).write_text(swapped, encoding="utf-8")
    write_recipe("tokenizer_source: union\n")(folder)


def same_parent(folder: Path) -> None:
    """The model that it was trained from, or so its maker thinks."""
    copy_of(folder, folder.with_name("parent"))


def write_recipe(text: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / RECIPE).write_text(text, encoding="utf-8")

    return apply


def write_jinja(text: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")

    return apply


def tag_free(text: str) -> str:
    return text.replace("im_end", "end_of_speech").replace("im_start", "start_of_speech")


CONFIG, GENERATION, TOKENIZER, TOKENIZER_CONFIG = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
WEIGHTS = "model.safetensors"
MUTATIONS = (
    Mutation("eos-mismatch", set_json(CONFIG, eos_token_id=2), CONFIG, "eos_token_id", "</s> = 2"),
    Mutation(
        "eos-mismatch",
        set_json(GENERATION, eos_token_id=[2, 32001]),
        GENERATION,
        "eos_token_id",
        "</s> = 2, <|im_start|> = 32001",
    ),
    Mutation("eos-mismatch", set_json(TOKENIZER_CONFIG, eos_token="</s>"), TOKENIZER_CONFIG, "eos_token", "</s>"),
    Mutation(
        "eos-mismatch",
        set_json("special_tokens_map.json", eos_token={"content": "<|eot|>"}),
        "special_tokens_map.json",
        "eos_token",
        "<|eot|>, no token",
    ),
    Mutation("eos-mismatch", set_json("added_tokens.json", **{"<|im_end|>": 31999}), "added_tokens.json", "<|im_end|>"),
    Mutation("template-missing", set_template(None), "chat_template.jinja"),
    Mutation("template-missing", set_template("{{ bos_token }}"), TOKENIZER_CONFIG),
    Mutation(
        "template-conflict",
        write_jinja(CHATML.replace("\\n", " ")),
        TOKENIZER_CONFIG,
        "chat_template",
        "|>user\\nZq",
    ),
    Mutation(
        "template-conflict", write_jinja(CHATML + "{# new #}"), TOKENIZER_CONFIG, "chat_template", severity="warning"
    ),
    Mutation("template-unsafe", set_template(HOSTILE["endless loops"]), TOKENIZER_CONFIG, found="CPU time"),
    Mutation("template-tokens", set_template(tag_free(CHATML)), TOKENIZER_CONFIG, found="<|end_of_speech|>"),
    Mutation(
        "template-tokens",
        set_template(CHATML.replace("im_start", "start_of_speech")),
        TOKENIZER_CONFIG,
        "chat_template",
        "<|start_of_speech|>",
    ),
    Mutation(
        "template-dialect",
        set_template(CHATML + "{% if 2 ** 2 == 5 %}x{% endif %}"),
        TOKENIZER_CONFIG,
        "chat_template",
        "the operator **",
    ),
    Mutation("token-split", tag_as_plain_piece, TOKENIZER, "added_tokens", "<|im_end|> as"),
    Mutation("double-bos", set_template("{{ bos_token }}" + CHATML), TOKENIZER_CONFIG, "chat_template", "<s> printed"),
    Mutation("duplicate-token", second_the, TOKENIZER, found="'▁the' = 272 and 32002", rows=32003),
    Mutation("spm-stale", forget_added_tokens, "tokenizer.model", found="<|im_end|>, <|im_start|>"),
    Mutation("spm-stale", rename_piece, "tokenizer.model", found="梦"),
    Mutation(
        "tokenizer-class",
        set_json(TOKENIZER_CONFIG, tokenizer_class="TokenizersBackend"),
        TOKENIZER_CONFIG,
        "tokenizer_class",
        "TokenizersBackend",
    ),
    Mutation(
        "tokenizer-class",
        set_json(TOKENIZER_CONFIG, tokenizer_class="Qwen2Tokenizer"),
        TOKENIZER_CONFIG,
        "tokenizer_class",
        "Qwen2Tokenizer",
    ),
    Mutation("pretokenizer-unknown", letters_apart, TOKENIZER, "pre_tokenizer"),
    Mutation("vocab-overflow", lambda _: None, TOKENIZER, found="<|im_start|> = 32001", rows=32001),
    Mutation(
        "vocab-overflow", set_json("added_tokens.json", **{"[PAD]": 32002}), "added_tokens.json", found="[PAD] = 32002"
    ),
    Mutation("vocab-padding", lambda _: None, TOKENIZER, found="62 rows of padding", rows=32064),
    Mutation(
        "tie-conflict", set_json(CONFIG, tie_word_embeddings=True), CONFIG, "tie_word_embeddings", "32002 of 32002"
    ),
    Mutation("tag-untrained", set_row(EMBEDDING, lambda rows: rows[0] * 0), WEIGHTS, EMBEDDING, "is zero"),
    Mutation("tag-untrained", set_row(EMBEDDING, lambda rows: rows[7]), WEIGHTS, EMBEDDING, "equals row 7"),
    Mutation("tag-untrained", set_row(EMBEDDING, lambda rows: rows.mean(0)), WEIGHTS, EMBEDDING, "mean of all rows"),
    Mutation("tag-untrained", set_row(HEAD, lambda rows: rows[0] * 0), WEIGHTS, HEAD, "is zero"),
    Mutation("weight-nan", set_value(NORM, torch.nan), WEIGHTS, NORM, "1 of 64"),
    Mutation("weight-nan", set_value(EMBEDDING, -torch.inf), WEIGHTS, EMBEDDING, "1 of "),
    Mutation("f16-overflow", set_value(NORM, -7e4), WEIGHTS, NORM, "1 of 64 values beyond 65504"),
    Mutation(
        "source-quantized",
        set_json(CONFIG, quantization_config={"quant_method": "gptq"}),
        CONFIG,
        "quantization_config",
        "gptq",
    ),
    Mutation("remote-code", set_json(CONFIG, auto_map={"AutoModel": "model.Model"}), CONFIG, "auto_map", "model.Model"),
    Mutation("source-incomplete", truncate, WEIGHTS),
    Mutation(
        "rope-form",
        set_json(CONFIG, rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        CONFIG,
        "rope_theta",
        "1000000.0 in rope_parameters alone",
    ),
    Mutation(
        "rope-form",
        set_json(CONFIG, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        CONFIG,
        "rope_theta",
        "10000.0, and 1000000.0 in rope_parameters",
        severity="error",
    ),
    Mutation(
        "turn-end",
        set_template(CHATML.replace("<|im_end|>", "")),
        "tokenizer_config.json",
        "chat_template",
        "no token behind the answer of a chat in the format chatml",
    ),
    Mutation("head-tie", edit(lambda tensors: tensors.pop(HEAD)), CONFIG, "tie_word_embeddings", "no lm_head.weight"),
    Mutation(
        "head-tie",
        edit(lambda tensors: tensors[HEAD].copy_(tensors[EMBEDDING])),
        WEIGHTS,
        HEAD,
        "a head equal to the embedding, and tie_word_embeddings false",
        severity="info",
    ),
    Mutation("merge-vocab", write_recipe("base_model: org/parent"), RECIPE, found="org/parent, not", severity="info"),
    Mutation(
        "merge-rows", swapped_parent, WEIGHTS, EMBEDDING, "<|im_end|>: row 32000 is like row 32000", parent="parent"
    ),
    Mutation("source-incomplete", lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS),
    Mutation("vocab-rows", set_json(CONFIG, vocab_size=32000), CONFIG, "vocab_size", "32000, and 32002 rows"),
    Mutation(
        "special-lists",
        set_json(TOKENIZER_CONFIG, extra_special_tokens=["<|im_start|>"]),
        TOKENIZER_CONFIG,
        "extra_special_tokens",
        "list: ['<|im_start|>']",
        severity="warning",
    ),
    Mutation(
        "special-lists",
        set_json(TOKENIZER_CONFIG, additional_special_tokens="<|im_start|>, <|im_end|>"),
        TOKENIZER_CONFIG,
        "additional_special_tokens",
        "str: ",
    ),
    Mutation(
        "special-lists",
        set_json("special_tokens_map.json", additional_special_tokens=[{"content": "<|tool|>"}, "<|im_end|>"]),
        "special_tokens_map.json",
        "additional_special_tokens",
        "<|tool|>, no token",
    ),
    Mutation("no-delta", same_parent, WEIGHTS, found="equals that of", parent="parent"),
    Mutation(
        "tensors-lost",
        set_json("config.json", num_nextn_predict_layers=1),
        "config.json",
        "num_nextn_predict_layers",
        "1, and no tensors of such layers",
    ),
)


def broken(mutation: Mutation, hermes: Path, folder: Path) -> Inspection:
    if mutation.rows is None:
        copy_of(hermes, folder)
    else:
        tiny_checkpoint(folder, rows=mutation.rows)
    mutation.apply(folder)
    return inspect(str(folder), parents=(str(folder.with_name(mutation.parent)),) if mutation.parent else ())


def test_the_untouched_checkpoint_has_no_finding(hermes: Path) -> None:
    inspection = inspect(str(hermes))
    assert inspection.findings == ()
    assert inspection.contract is not None


def test_the_trained_checkpoint_has_no_finding(trained_hermes: Path) -> None:
    assert inspect(str(trained_hermes)).findings == ()


def test_every_rule_is_broken_once() -> None:
    of_artifacts = {"not-quantized", "kquant-shape"}  # Broken in tests/chat/test_artifact_checks.py.
    of_adapters = {"adapter-vocab"}  # Broken in tests/checkpoint/test_adapter.py.
    assert {mutation.rule for mutation in MUTATIONS} == set(CHECKS) - of_artifacts - of_adapters


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.rule}-{mutation.found}")
def test_the_rule_finds_its_fault_and_no_other_rule_does(mutation: Mutation, hermes: Path, tmp_path: Path) -> None:
    findings = broken(mutation, hermes, tmp_path / "broken").findings
    assert {item.rule for item in findings} == {mutation.rule}
    item = findings[0]
    assert (item.file, item.field) == (mutation.file, mutation.field)
    assert mutation.found in item.found
    assert item.severity == (mutation.severity or RULES[mutation.rule].severity)
    assert item.expected
    assert item.repair
