"""Merges held against their parents: every way in which a tag gets lost between vocabularies."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from hermetiq.chat.inspect import inspect
from hermetiq.chat.parents import read_parents
from hermetiq.checkpoint import open_checkpoint
from hermetiq.checkpoint.base import Checkpoint, Provenance
from hermetiq.errors import Finding, HermetiqError
from tests.chat.templates import CHATML
from tests.fixtures.models import copy_of, edit_json, tiny_checkpoint
from tests.fixtures.tokenizers import bpe_tokenizer

IM_START, IM_END = 801, 802
RULES = ("merge-vocab", "merge-rows")
EMBEDDING = "model.embed_tokens.weight"


def checkpoint_in(folder: Path, *, seed: int = 0, rows: int | None = None) -> Path:
    return tiny_checkpoint(folder, family="qwen2", tokenizer="bpe", layers=1, seed=seed, rows=rows)


def swap_tags(folder: Path) -> None:
    """Give the two tags each other's ids in the files that give ids."""
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    spelled = text.replace("im_end", "im_?").replace("im_start", "im_end").replace("im_?", "im_start")
    (folder / "tokenizer.json").write_text(spelled, encoding="utf-8")
    for file in ("config.json", "generation_config.json"):
        edit_json(folder / file, eos_token_id=IM_START)


def tokenizer_of(folder: Path) -> Path:
    """A parent of which only the tokenizer is here."""
    return copy_of(bpe_tokenizer().folder, folder)


def edit_row(folder: Path, row: int, value: torch.Tensor | float) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights[EMBEDDING][row] = value
    file.unlink()
    save_file(weights, file, metadata={"format": "pt"})


def recipe(folder: Path, document: object) -> None:
    (folder / "mergekit_config.yml").write_text(yaml.safe_dump(document), encoding="utf-8")


def findings(folder: Path, *parents: Path, weights: bool = True) -> list[Finding]:
    return list(
        inspect(str(folder), parents=[str(parent) for parent in parents], weights=weights, select=RULES).findings
    )


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A parent with its tags swapped, and weights of its own."""
    folder = checkpoint_in(tmp_path / "parent", seed=1)
    swap_tags(folder)
    return folder


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_in(tmp_path_factory.mktemp("merges") / "chatty")


@pytest.fixture(scope="module")
def healthy(chatty: Path) -> Checkpoint:
    return open_checkpoint(chatty)


def test_a_merge_of_one_vocabulary_is_healthy(chatty: Path, tmp_path: Path) -> None:
    folder = copy_of(chatty, tmp_path / "merge")
    edit_row(folder, 5, 0.25)
    recipe(folder, {"models": [{"model": str(chatty)}], "merge_method": "slerp"})
    assert inspect(str(folder), parents=(str(chatty),)).findings == ()


def test_no_folder_is_opened_because_a_recipe_names_it(chatty: Path, parent: Path, tmp_path: Path) -> None:
    folder = copy_of(chatty, tmp_path / "merge")
    recipe(folder, {"models": [{"model": str(parent)}], "merge_method": "slerp"})
    (told,) = findings(folder)
    assert (told.severity, told.found) == ("info", f"{parent}, not compared: only a file of the checkpoint names it")


def test_a_shifted_tag_is_named_with_its_id_in_the_parent(chatty: Path, parent: Path) -> None:
    start, end = findings(chatty, parent, weights=False)
    assert (end.severity, end.found, end.expected) == ("warning", f"<|im_end|> = {IM_END}", f"{IM_START} in {parent}")
    assert (start.found, start.expected) == (f"<|im_start|> = {IM_START}", f"{IM_END} in {parent}")


def test_a_row_of_another_token_is_an_error(chatty: Path, parent: Path, tmp_path: Path) -> None:
    folder = copy_of(chatty, tmp_path / "merge")
    mixed = (
        load_file(chatty / "model.safetensors")[EMBEDDING] + load_file(parent / "model.safetensors")[EMBEDDING]
    ) / 2
    edit_row(folder, IM_END, mixed[IM_END])
    (item,) = (item for item in findings(folder, parent) if item.rule == "merge-rows")
    assert item.severity == "error"
    assert item.found == f"<|im_end|>: row {IM_END} is like row {IM_END} of {parent} (<|im_start|>)"
    assert item.expected == f"like its row {IM_START}, which is <|im_end|>"


def test_rows_that_moved_along_are_no_fault(chatty: Path, parent: Path, tmp_path: Path) -> None:
    folder = copy_of(chatty, tmp_path / "merge")
    theirs = load_file(parent / "model.safetensors")[EMBEDDING]
    edit_row(folder, IM_END, theirs[IM_START])
    edit_row(folder, IM_START, theirs[IM_END])
    recipe(
        folder, {"slices": [{"sources": [{"model": {"model": {"path": str(parent)}}}]}], "tokenizer_source": "union"}
    )
    assert findings(folder, parent) == []


def test_a_tag_that_only_a_parent_has_is_named_with_its_owner(chatty: Path, parent: Path, tmp_path: Path) -> None:
    folder = copy_of(chatty, tmp_path / "merge")
    edit_json(folder / "tokenizer_config.json", chat_template=CHATML.replace("im_start", "start_of_speech"))
    text = (parent / "tokenizer.json").read_text(encoding="utf-8")
    (parent / "tokenizer.json").write_text(text.replace("im_start", "start_of_speech"), encoding="utf-8")
    (item,) = (item for item in findings(folder, parent, weights=False) if item.severity == "error")
    assert (item.rule, item.found) == ("merge-vocab", "no token <|start_of_speech|>")
    assert item.expected == f"{IM_END} in {parent}"


def test_a_tag_without_a_row_is_named_with_its_owner(chatty: Path, tmp_path: Path) -> None:
    folder = checkpoint_in(tmp_path / "merge", rows=IM_END)
    (item,) = findings(folder, chatty)
    assert (item.found, item.expected) == (f"<|im_end|> = {IM_END} without a row", f"{IM_END} in {chatty}")


@pytest.mark.parametrize(("value", "what"), [(torch.nan, "NaN"), (0.0, "zero")])
def test_a_broken_row_is_named_with_its_owner(value: float, what: str, chatty: Path, tmp_path: Path) -> None:
    folder = copy_of(chatty, tmp_path / "merge")
    edit_row(folder, IM_END, value)
    (item,) = findings(folder, chatty)
    assert (item.rule, item.severity, item.field) == ("merge-rows", "error", EMBEDDING)
    assert item.found == f"<|im_end|> = {IM_END} is {what} ({IM_END} in {chatty})"


def test_another_token_under_the_id_of_a_tag_is_told(chatty: Path, tmp_path: Path) -> None:
    parent = tokenizer_of(tmp_path / "parent")
    text = (parent / "tokenizer.json").read_text(encoding="utf-8")
    (parent / "tokenizer.json").write_text(text.replace("<|im_start|>", "[PAD]"), encoding="utf-8")
    (item,) = findings(chatty, parent)
    assert (item.severity, item.found) == ("warning", f"<|im_start|> = {IM_START}")
    assert item.expected == f"{IM_START} is [PAD] in {parent}"


def test_an_eos_that_a_merge_brought_back_is_named_with_that_of_the_parent(chatty: Path, tmp_path: Path) -> None:
    folder = copy_of(chatty, tmp_path / "merge")
    edit_json(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    (item,) = findings(folder, chatty)
    assert (item.severity, item.field, item.found) == ("error", "eos_token", "<|endoftext|>")
    assert item.expected == f"<|im_end|> as in {chatty}"


def test_an_eos_set_to_the_terminator_is_no_fault_although_no_parent_has_it(chatty: Path, tmp_path: Path) -> None:
    parent = tokenizer_of(tmp_path / "bagel")
    edit_json(parent / "tokenizer_config.json", eos_token="<|endoftext|>")
    assert findings(chatty, parent) == []


def test_parents_that_are_not_here_are_told(chatty: Path, tmp_path: Path) -> None:
    folder = copy_of(chatty, tmp_path / "merge")
    models = [{"model": "teknium/OpenHermes-2.5-Mistral-7B"}, {"model": "mistralai/Mistral-7B-v0.1+some/lora"}]
    recipe(folder, {"models": models, "base_model": "mistralai/Mistral-7B-v0.1"})
    told = findings(folder)
    assert {(item.rule, item.severity, item.file) for item in told} == {("merge-vocab", "info", "mergekit_config.yml")}
    assert [item.found.split(",")[0] for item in told] == [
        "mistralai/Mistral-7B-v0.1",
        "teknium/OpenHermes-2.5-Mistral-7B",
    ]


def test_a_parent_without_weights_compares_no_rows(chatty: Path, tmp_path: Path) -> None:
    parent = tokenizer_of(tmp_path / "parent")
    edit_json(parent / "tokenizer_config.json", eos_token="<|im_end|>")
    for file in ("config.json", "generation_config.json"):
        (parent / file).write_text("{}", encoding="utf-8")
    swap_tags(parent)
    assert [(item.rule, item.severity) for item in findings(chatty, parent)] == [
        *[("merge-vocab", "warning")] * 2,
        ("merge-rows", "info"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("[", "- a", "a: b: c", "x: !!python/object/apply:os.system [ls]", "[" * 5000, "a: &a [*a]", "#" * (1 << 18)),
        *("models: 5", "models: [5, {model: [x]}, {model: {model: {path: 3}}}]", "base_model: !!int ''", "? [a]\n: b"),
        "base_model: /\nmodels: [{model: '\\0'}, {model: '..'}]",
        "base_model: " + "x" * 9999,
    ],
    ids=lambda text: text[:20],
)
def test_no_recipe_stops_an_inspection(text: str, healthy: Checkpoint) -> None:
    checkpoint = copy.copy(healthy)
    checkpoint.provenance = Provenance("merge", merge_recipe=text)
    parents = read_parents(checkpoint)
    assert parents.read == ()
    assert {item.severity for item in parents.findings} <= {"info"}


def test_a_parent_that_is_nowhere_is_an_error_of_usage(chatty: Path) -> None:
    with pytest.raises(HermetiqError, match="no such parent"):
        findings(chatty, Path("/no/such/parent"))
