"""Greedy answers by a checkpoint's own weights, against transformers' own loading of the same folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from hermetiq.checkpoint import open_checkpoint
from hermetiq.verify import native, reference
from hermetiq.verify.reference import Reference
from tests.fixtures.models import tiny_checkpoint
from tests.verify.test_verify import small_questions


@pytest.fixture(scope="module", params=[("qwen2", True), ("llama", False)], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, tied = request.param
    target = tmp_path_factory.mktemp("native") / "m"
    return tiny_checkpoint(target, family=family, tied=tied, tokenizer="bpe", dtype=torch.float32)


@pytest.fixture(scope="module")
def asked(folder: Path) -> Reference:
    with small_questions():
        return reference.read(open_checkpoint(folder))


def test_answers_are_those_of_transformers_alone(folder: Path, asked: Reference) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lengths = {len(prompt.ids) for prompt in asked.smoke}
    assert len(lengths) > 1, "nothing is padded"
    shares: list[float] = []
    answers = native.answers(open_checkpoint(folder), asked, shares.append)
    assert [answer.prompt_ids for answer in answers] == [prompt.ids for prompt in asked.smoke]
    for answer in answers:
        alone = model.generate(
            torch.tensor([answer.prompt_ids]),
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=list(asked.contract.stop_ids),
        )[0, len(answer.prompt_ids) :].tolist()
        assert list(answer.generation.ids) == alone
        assert answer.generation.stopped == (alone[-1] in asked.contract.stop_ids)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_an_answer_ends_with_its_first_stop(folder: Path, asked: Reference) -> None:
    checkpoint = open_checkpoint(folder)
    (first, *_) = native.answers(checkpoint, asked, lambda share: None)
    stop = first.generation.ids[2]
    early = replace(asked, contract=replace(asked.contract, stop_ids=(stop,)))
    (answer, *_) = native.answers(checkpoint, early, lambda share: None)
    assert answer.generation.stopped
    assert answer.generation.ids == first.generation.ids[: first.generation.ids.index(stop) + 1]
    assert answer.generation.text == checkpoint.tokenizer.decode(answer.generation.ids[:-1])


def test_a_model_that_takes_more_than_half_of_the_free_memory_is_not_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(folder)
    needed = 4 * checkpoint.model.weights
    monkeypatch.setattr(native, "free_memory", lambda: 2 * needed)
    assert native.memory_note(checkpoint) == ""
    monkeypatch.setattr(native, "free_memory", lambda: 2 * needed - 2)
    assert "needs 0.0 GB" in native.memory_note(checkpoint)
    # Beyond a billion weights two bytes a weight are enough.
    monkeypatch.setattr(native, "EXACT_WEIGHTS", 0)
    assert native.memory_note(checkpoint) == ""
