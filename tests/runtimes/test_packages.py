"""The worker and its protocol, with packages of our own in place of the real ones."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from hermetiq.checkpoint import open_checkpoint
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.errors import CheckFailed
from hermetiq.runtimes.packages import Question, ask
from hermetiq.verify import foreign
from hermetiq.verify.foreign import Observed
from hermetiq.verify.judge import Findings
from hermetiq.verify.reading import read_rows
from hermetiq.verify.reference import Reference, read
from tests.fixtures.packages import stand_in

PLAIN = """
    import sys
    print("a library that talks", flush=True)
    print("and complains", file=sys.stderr)
    from transformers import AutoModelForCausalLM
    class AutoGPTQForCausalLM:
        def __init__(self, model): self.model = model
        @classmethod
        def from_quantized(cls, folder, **options):
            return cls(AutoModelForCausalLM.from_pretrained(folder, dtype=options["torch_dtype"]))
"""
ROWS = ([1, 300, 400, 500], [1, 600, 700, 800, 900, 1000])
POSITIONS = ((1, 4), (0, 0), (1, 0), (0, 3))


@pytest.fixture(scope="module")
def source(trained_hermes: Path) -> Checkpoint:
    return open_checkpoint(str(trained_hermes))


@pytest.fixture(scope="module")
def asked(source: Checkpoint) -> Reference:
    return read(source)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the source of an `auto_gptq` goes."""
    return stand_in(tmp_path, monkeypatch)


def question(**changes: object) -> Question:
    parts: dict[str, object] = {"rows": ROWS, "positions": POSITIONS, "prompts": [[1, 5]], "texts": [], "max_tokens": 2}
    return Question(**{**parts, **changes})  # type: ignore[arg-type]


def test_logits_answers_stops_and_tokens_are_those_of_the_model(
    package: Path, trained_hermes: Path, source: Checkpoint, asked: Reference
) -> None:
    package.write_text(textwrap.dedent(PLAIN))
    prompts = [prompt.ids for prompt in asked.smoke[:3]]
    told = ask("auto-gptq", trained_hermes, question(prompts=prompts, texts=["Hi!", "<|im_end|>"], max_tokens=16))

    ours = read_rows(source, ROWS)
    expected = torch.stack([ours.logits(ours.states[row][place : place + 1])[0] for row, place in POSITIONS])
    np.testing.assert_allclose(told.logits, expected.numpy(), atol=1e-4)
    assert told.stops == {asked.contract.terminator_id}
    assert told.tokens == (tuple(source.tokenizer.encode("Hi!")), (asked.contract.terminator_id,))
    # Prompts of different lengths share a batch: each answer is the one that the source, asked alone, would give.
    answered = read_rows(source, [[*prompt, *ids] for prompt, ids in zip(prompts, told.continuations, strict=True)])
    for prompt, ids, states in zip(prompts, told.continuations, answered.states, strict=True):
        choices = answered.logits(states).argmax(dim=1)[len(prompt) - 1 : -1]
        assert tuple(choices.tolist()) == ids
        assert asked.contract.terminator_id not in ids[:-1]


def test_a_package_that_fails_ends_as_an_error_with_its_own_words(package: Path, trained_hermes: Path) -> None:
    package.write_text("raise ImportError('no kernel for you')\n")
    with pytest.raises(CheckFailed, match="no kernel for you") as caught:
        ask("auto-gptq", trained_hermes, question())
    assert str(trained_hermes.parent) not in str(caught.value)


def test_a_package_that_leaves_without_an_answer_or_hangs_is_no_success(package: Path, trained_hermes: Path) -> None:
    package.write_text("import os; os._exit(0)\n")
    with pytest.raises(CheckFailed, match="does not run this artifact"):
        ask("auto-gptq", trained_hermes, question())
    package.write_text("import time; time.sleep(600)\n")
    with pytest.raises(CheckFailed, match="no answer within"):
        ask("auto-gptq", trained_hermes, question(), timeout=4)


@pytest.mark.parametrize(("shift", "passed"), [(0.0, True), (0.004, True), (0.006, False), (float("nan"), False)])
def test_agreement_is_of_logits_and_nan_fails_it(
    source: Checkpoint, asked: Reference, shift: float, passed: bool
) -> None:
    row, position = asked.ends[0]
    ours = read_rows(source, asked.rows[: row + 1])
    theirs = ours.logits(ours.states[row][position : position + 1])[0].clone()
    theirs[7] += shift
    found = foreign.agreement(Observed("auto-gptq", Findings(), logits=((0, theirs),)), asked, ours)
    assert [(check.name, check.passed) for check in found.checks] == [("auto-gptq-agreement", passed)]
