"""Tables of an evaluation: source beside artifacts, and an average that means something."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hermetiq import screen
from hermetiq.evaluate import Evaluation, tables
from hermetiq.evaluate.results import Evaluated, Score
from tests.evaluate.test_results import score


def evaluation(source: tuple[Score, ...], *artifacts: tuple[Score, ...], limit: int | None = None) -> Evaluation:
    made = tuple(Evaluated(f"q{number}.gguf", "0" * 64, scores) for number, scores in enumerate(artifacts))
    return Evaluation(("all",), "f" * 64, source, made, limit=limit, harness="0.4.13")


def test_every_line_of_the_source_has_a_value_of_each_artifact() -> None:
    source = (score(shots=5), score("wiki", "perplexity", 7.25, higher_is_better=False, stderr=None))
    found = tables.scores(evaluation(source, (score(value=0.49),), tuple(reversed(source))))
    assert found.head == ("Task", "Version", "Filter", "n-shot", "Metric", "", "source", "q0.gguf", "q1.gguf")
    assert found.rows == (
        ("arc", "1.0", "none", "5", "acc", "↑", "0.5000 ± 0.0100", "0.4900 ± 0.0100", "0.5000 ± 0.0100"),
        ("wiki", "1.0", "none", "0", "perplexity", "↓", "7.2500", "-", "7.2500"),
    )


def test_an_average_counts_each_task_once_by_its_headline() -> None:
    def of(arc: float, mmlu: float, gsm: float) -> tuple[Score, ...]:
        return (
            score("arc", "acc", 0.0),
            score("arc", "acc_norm", arc),
            score("mmlu_law", "acc", mmlu),
            score("mmlu", "acc", 0.0, documents=None),
            score("gsm8k", "exact_match", gsm),
            score("wiki", "perplexity", 9.0, higher_is_better=False),
        )

    found = tables.averages(evaluation(of(0.6, 0.4, 0.2), of(0.6, 0.1, 0.2)))
    assert found.rows == (("q0.gguf", "3", "0.4000", "0.3000", "-0.1000"),)


def test_an_average_is_taken_of_what_both_have() -> None:
    source = (score("arc", value=0.8), score("boolq", value=0.2), score("bleu", "bleu", 40.0))
    artifact = (score("arc", value=0.7), score("boolq", value=None), score("bleu", "bleu", 1.0))
    assert tables.averages(evaluation(source, artifact)).rows == (("q0.gguf", "1", "0.8000", "0.7000", "-0.1000"),)
    assert tables.averages(evaluation(source, ())).rows == ()


def test_a_part_of_the_questions_is_said_to_be_one() -> None:
    whole, part = (tables.caption(evaluation((score(),), limit=limit)) for limit in (None, 10))
    assert "0.4.13" in whole
    assert "first 10" in part
    assert "first" not in whole


def test_the_terminal_shows_names_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = score("[red]arc[/]\nnote all is well\x1b[2J")
    screen.show_evaluation(replace(evaluation((hostile,), (hostile,)), notes=("b.gguf was not evaluated: [bold]",)))
    shown = capsys.readouterr()
    assert r"[red]arc[/]\nnote all is well\x1b[2J" in shown.out
    assert "q0.gguf" in shown.out
    assert "note b.gguf was not evaluated: [bold]" in shown.err
