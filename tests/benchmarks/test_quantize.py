"""The comparison of quantizers: what is read, what is kept between runs, and what counts as met."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import fidelity, quantize
from hermetiq.calibration.heldout import held_out_chats
from hermetiq.checkpoint import open_checkpoint


def test_regrouped_chats_hold_every_answer_once_more() -> None:
    chats = held_out_chats()
    answers = Counter(
        message["content"] for chat in chats for message in chat.messages if message["role"] == "assistant"
    )
    again = fidelity.regrouped(chats)
    assert answers == Counter(m["content"] for chat in again for m in chat.messages if m["role"] == "assistant")
    assert {message["role"] for chat in again for message in chat.messages} == {"user", "assistant"}
    assert again == fidelity.regrouped(chats)


def test_yardstick_has_two_hundred_ends_each_before_the_terminator(hermes: Path) -> None:
    asked = fidelity.yardstick(open_checkpoint(hermes))
    assert len(asked.ends) >= 200
    assert {asked.rows[row][place + 1] for row, place in asked.ends} == {asked.terminator}
    assert {row < asked.chats for row, _ in asked.ends} == {True, False}


def test_a_round_that_is_done_is_not_run_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = "import sys, pathlib; pathlib.Path(sys.argv[1], 'made-here').mkdir(parents=True)"
    contender = quantize.Contender(lambda task, out: [sys.executable, "-c", code, out], artifact="made-*")
    task = quantize.Task(tmp_path / "model", tmp_path / "rows.json", ("1", "1"))
    quantize.quantize(tmp_path / "one", contender, task, 0)
    assert (tmp_path / "one" / "artifact").read_text() == "out/made-here"
    assert json.loads((tmp_path / "one" / "cost-0.json").read_text())["seconds"] > 0
    broken = dataclasses.replace(contender, command=lambda task, out: ["/nowhere"])
    quantize.quantize(tmp_path / "one", broken, task, 0)
    with pytest.raises(FileNotFoundError):
        quantize.quantize(tmp_path / "one", broken, task, 1)


def test_report_judges_only_what_ran(capsys: pytest.CaptureFixture[str]) -> None:
    ours = quantize.Result(seconds=30, peak=2**30, kl=0.2, shift=-0.2, ends=244)
    theirs = quantize.Result(seconds=100, peak=2**30, kl=0.4, shift=0.5, ends=244)
    quantize.report("scaled", {"gptq": ours, "gptqmodel": theirs})
    told = [line.split() for line in capsys.readouterr().out.splitlines() if "goal" in line]
    assert [(line[1], line[-4].rstrip(","), line[-1]) for line in told] == [
        ("gptq", "0.500", "met"),
        ("gptq,", "0.200", "MISSED"),
        ("gptq", "0.300", "met"),
        ("gptq", "1.000", "met"),
    ]
