"""Tokenizer files that would run for ever, fill the memory or make the library panic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hermetiq.checkpoint.tokenizer import from_folder
from hermetiq.checkpoint.tokenizer_guard import require_bounded
from hermetiq.errors import Refusal
from tests.fixtures.tokenizers import bpe_tokenizer, hermes_tokenizer


def refused(folder: Path, **changes: Any) -> str:
    """What is said of the fixture's tokenizer.json with some of its parts replaced."""
    document = json.loads((bpe_tokenizer().folder / "tokenizer.json").read_text(encoding="utf-8")) | changes
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(Refusal) as refusal:
        from_folder(folder, {"tokenizer.json": document})
    (finding,) = refusal.value.findings
    assert (finding.rule, finding.file) == ("source-incomplete", "tokenizer.json")
    return f"{finding.field}: {finding.found}"


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


GROWING = {
    "a longer text": replace({"String": "a"}, "aa"),
    "a pattern": replace({"Regex": "."}, "x"),
    "a long prefix": {"type": "Prepend", "prepend": "x" * 9},
    "a step in sequences": {
        "type": "Sequence",
        "normalizers": [{"type": "Sequence", "normalizers": [replace({"String": ""}, "a")]}],
    },
    "many steps": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 9},
}


@pytest.mark.parametrize("normalizer", GROWING)
def test_steps_that_make_a_text_longer(tmp_path: Path, normalizer: str) -> None:
    assert refused(tmp_path, normalizer=GROWING[normalizer]).startswith("normalizer: ")


def test_the_tokenizers_that_people_have_are_bounded() -> None:
    for files in (bpe_tokenizer(), hermes_tokenizer()):
        require_bounded(json.loads((files.folder / "tokenizer.json").read_text(encoding="utf-8")))


def test_a_pattern_beyond_the_limits_of_the_library(tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a|aa)+$|(.*)*x(?=y)"}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    steps = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    assert "retry-limit" in refused(tmp_path, pre_tokenizer=steps)


def test_ids_that_the_library_deals_out_anew(tmp_path: Path) -> None:
    """A hole in the vocabulary: the library gives an added token the next free id, whatever the file says."""
    document = json.loads((bpe_tokenizer().folder / "tokenizer.json").read_text(encoding="utf-8"))
    twice = {**document["model"]["vocab"], "Zz": 5}
    assert "which is read as" in refused(tmp_path, model={**document["model"], "vocab": twice})
