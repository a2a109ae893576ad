"""Benchmarks on a card: the harness's table with source beside artifacts, and the averages before and after."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from hermetiq.evaluate import Evaluation, tables
from hermetiq.evaluate.tables import Grid

from .markdown import plain, table


def benchmarks(evaluation: Evaluation | None, files: Collection[str]) -> str:
    """The section of a card; empty where nothing was measured on its artifacts.

    Args:
        evaluation: what holds for the export (`Evaluation.of`).
        files: the artifacts that the card is about, by `Artifact.file`.
    """
    measured = [item for item in evaluation.artifacts if item.file in files] if evaluation else []
    if evaluation is None or not measured:
        return ""
    shown = replace(evaluation, artifacts=tuple(measured))
    averages = tables.averages(shown)
    parts = ["## Benchmarks", f"{plain(tables.caption(shown))}.", _markdown(tables.scores(shown))]
    if averages.rows:
        parts += ["On average, before and after:", _markdown(averages)]
    return "\n\n".join(parts)


def _markdown(grid: Grid) -> str:
    return table([*map(plain, grid.head)], [[*map(plain, row)] for row in grid.rows])
