"""Evaluations as the tables of model cards: every metric, source beside artifacts, and averages before and after.

The cells are plain text, and may hold whatever a task calls itself: whoever prints them escapes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from .results import Evaluation, Score

_HEADLINES: Final = ("acc_norm", "acc")
"""The metric that stands for a task in an average, the first that it has, as the cards of fine-tunes have it."""
_ARROWS: Final = {True: "↑", False: "↓", None: ""}


@dataclass(frozen=True)
class Grid:
    """A table of plain text."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def scores(evaluation: Evaluation) -> Grid:
    """A line for each metric of each task, in the harness's columns, with a value for each model."""
    by_artifact = [(item.file, {score.line: score for score in item.scores}) for item in evaluation.artifacts]
    rows = []
    for score in evaluation.source:
        shots = "" if score.shots is None else str(score.shots)
        values = [_value(score), *(_value(found.get(score.line)) for _, found in by_artifact)]
        rows.append((score.task, score.version, score.filter, shots, score.metric, _ARROWS[score.higher_is_better],
                     *values))  # fmt: skip
    names = ("source", *(file for file, _ in by_artifact))
    return Grid(("Task", "Version", "Filter", "n-shot", "Metric", "", *names), tuple(rows))


def averages(evaluation: Evaluation) -> Grid:
    """The mean over all tasks before and after quantization, a line for each artifact; without lines where there is
    nothing to take a mean of.

    A task counts once, by `acc_norm`, else `acc`, else the first of its metrics of which more is better. Only what
    source and artifact both have counts, and only from 0 to 1: other scales have no common mean.
    """
    rows = []
    headlines = _headlines(evaluation.source)
    for item in evaluation.artifacts:
        found = {score.line: _share(score) for score in item.scores}
        pairs = [(_share(score), found.get(score.line)) for score in headlines]
        shares = [(before, after) for before, after in pairs if before is not None and after is not None]
        if shares:
            before, after = (fmean(values) for values in zip(*shares, strict=True))
            rows.append((item.file, str(len(shares)), f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}"))
    return Grid(("Artifact", "Tasks", "Source", "Artifact's", "Difference"), tuple(rows))


def caption(evaluation: Evaluation) -> str:
    """One line on where the values come from, and how far they go."""
    text = f"lm-evaluation-harness {evaluation.harness}, value ± standard error"
    if evaluation.limit is None:
        return text
    return f"{text}; only the first {evaluation.limit} questions of each task, so no result to compare with others"


def _headlines(found: Sequence[Score]) -> list[Score]:
    """The score that stands for each task; groups are made of their tasks, and would count twice."""
    best: dict[str, Score] = {}
    for score in found:
        if score.documents is None or not score.higher_is_better:
            continue
        if score.task not in best or _rank(score) < _rank(best[score.task]):
            best[score.task] = score
    return list(best.values())


def _rank(score: Score) -> int:
    return _HEADLINES.index(score.metric) if score.metric in _HEADLINES else len(_HEADLINES)


def _value(score: Score | None) -> str:
    if score is None or score.value is None:
        return "-"
    return f"{score.value:.4f}" + ("" if score.stderr is None else f" ± {score.stderr:.4f}")


def _share(score: Score) -> float | None:
    return score.value if score.value is not None and 0 <= score.value <= 1 else None
