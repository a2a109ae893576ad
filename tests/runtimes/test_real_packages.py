"""Real exports in the packages people load them with, which are installed on first use (`make test-runtimes`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hermetiq.calibration.corpus import Chat
from hermetiq.checkpoint import Checkpoint, open_checkpoint
from hermetiq.pipeline import export, prepare
from hermetiq.quantize.spec import parse
from hermetiq.verify import foreign, reference
from hermetiq.verify.reading import read_rows
from hermetiq.verify.reference import Reference
from hermetiq.verify.thresholds import limits_for
from tests.fixtures.hermes import CHATS

pytestmark = pytest.mark.runtimes

READERS = {
    "auto-gptq": ["4bit-g32", "4bit-g32-actorder", "4bit-g32-asym", "8bit-g32-actorder", "3bit-g32"],
    "gptqmodel": ["4bit-g32", "4bit-g32-actorder", "4bit-g32-asym-v2", "8bit-g32-actorder", "3bit-g32"],
    "transformers": ["4bit-g32", "4bit-g32-asym", "4bit-g32-asym-v2"],
}
"""Recipes of GPTQ by the packages that read them."""
CASES = [(name, f"gptq:{recipe}") for name, recipes in READERS.items() for recipe in recipes]
CASES += [(name, "awq:4bit-g32") for name in ("autoawq", "gptqmodel", "transformers")]


@dataclass(frozen=True)
class Exported:
    """Every spec of `CASES`, and the fixture's chats to ask about."""

    source: Checkpoint
    asked: Reference
    folders: dict[str, Path]
    """By spec."""


@pytest.fixture(scope="module")
def exported(trained_hermes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    out = tmp_path_factory.mktemp("real") / "out"
    specs = [parse(spec) for spec in dict.fromkeys(spec for _, spec in CASES)]
    manifest = export(prepare(trained_hermes, specs, rows=16, row_tokens=256), out)
    source = open_checkpoint(trained_hermes)
    chats = tuple(Chat((*chat.messages, {"role": "assistant", "content": chat.answer})) for chat in CHATS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "held_out_chats", lambda: chats)
        patch.setattr(reference, "SAMPLES", len(chats) * 2)
        asked = reference.read(source)
        if "HERMETIQ_CACHE" not in os.environ:
            # Environments are kept beside the other things that tests make once, where nobody says otherwise.
            patch.setenv("HERMETIQ_CACHE", str(Path(__file__).parents[2] / ".cache" / "hermetiq"))
        folders = {item.spec: manifest.path_of(item, out) for item in manifest.artifacts}
        yield Exported(source, replace(asked, smoke=asked.samples), folders)


@pytest.mark.parametrize(("name", "spec"), CASES, ids=lambda value: value)
def test_the_package_agrees_with_our_reader_and_ends_every_chat(name: str, spec: str, exported: Exported) -> None:
    source, asked, folder = exported.source, exported.asked, exported.folders[spec]
    seen = foreign.observe(name, folder, asked, source.tokenizer.decode)
    agreed = foreign.agreement(seen, asked, read_rows(open_checkpoint(folder), asked.rows))
    answered = read_rows(source, [answer.ids for answer in seen.answers])
    limits = limits_for(parse(spec), weights=source.model.weights)
    ended = foreign.stops(seen, asked, answered, limits, source.tokenizer.decode)
    found = seen.findings + agreed + ended
    assert [check for check in found.checks if not check.passed] == []
    assert found.notes == ()
    told = {answer.generation.text for answer in seen.answers}
    assert all(answer.generation.stopped for answer in seen.answers)
    assert told >= {chat.answer for chat in CHATS}


def test_the_exports_have_scales_of_both_signs(exported: Exported) -> None:
    """A symmetric grid reaches further on one side; packages are seen to read the sign."""
    (weights,) = exported.folders["gptq:4bit-g32"].glob("*.safetensors")
    scales = [tensor for name, tensor in load_file(weights).items() if name.endswith(".scales")]
    assert any(tensor.min() < 0 < tensor.max() for tensor in scales)
