"""`hermetiq-eval.json`: what holds for the export as it is, and what of a damaged file is believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hermetiq.errors import HermetiqError
from hermetiq.evaluate import Evaluation
from hermetiq.evaluate.results import Evaluated, Score
from hermetiq.manifest import BESIDE, EVALUATION, Manifest
from tests.publish.release import small_export


def score(task: str = "arc", metric: str = "acc", value: float | None = 0.5, **changes: Any) -> Score:
    stated: dict[str, Any] = {
        "version": "1.0", "filter": "none", "shots": 0, "higher_is_better": True, "stderr": 0.01, "documents": 100,
    }  # fmt: skip
    return Score(task=task, metric=metric, value=value, **{**stated, **changes})


def of_export(manifest: Manifest) -> Evaluation:
    """An evaluation of all artifacts, each a little worse than the one before."""
    artifacts = tuple(
        Evaluated(item.file, item.sha256, (score(value=0.5 - 0.01 * number),))
        for number, item in enumerate(manifest.artifacts, start=1)
    )
    return Evaluation(("arc",), manifest.source.fingerprint, (score(),), artifacts, harness="0.4.13")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return small_export(tmp_path, ["gguf:Q8_0", "gguf:Q4_K_M"])


def test_what_was_written_is_read(manifest: Manifest, tmp_path: Path) -> None:
    assert Evaluation.read(tmp_path) is None
    found = of_export(manifest)
    found.write(tmp_path)
    assert Evaluation.read(tmp_path) == found
    assert EVALUATION in BESIDE, "an export that replaces this one must take its results away"


def test_only_what_was_measured_on_these_bytes_holds(manifest: Manifest) -> None:
    found = of_export(manifest)
    assert found.of(manifest) == found
    first, second = manifest.artifacts
    remade = replace(manifest, artifacts=(first, replace(second, sha256="0" * 64)))
    kept = found.of(remade)
    assert kept is not None
    assert [item.file for item in kept.artifacts] == [first.file]
    assert found.of(replace(manifest, artifacts=())) is None
    other = replace(manifest, source=replace(manifest.source, fingerprint="0" * 64))
    assert found.of(other) is None


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda d: d["source"][0].update(value="high"), r"source\[0\].value"),
        (lambda d: d["source"][0].update(stderr=-0.1), "below 0"),
        (lambda d: d["source"][0].update(documents=True), "documents"),
        (lambda d: d["artifacts"][0]["scores"][0].update(shots=-1), r"artifacts\[0\].scores\[0\]"),
        (lambda d: d.update(limit=0), "limit below 1"),
        (lambda d: d.update(more=1), "more"),
        (lambda d: d.update(version=9), "version 1"),
        (lambda d: d["source"][0].update(value=float("nan")), "no number"),
    ],
)
def test_a_damaged_file_is_told(edit: Callable[[Any], None], told: str, manifest: Manifest, tmp_path: Path) -> None:
    of_export(manifest).write(tmp_path)
    document = json.loads((tmp_path / EVALUATION).read_bytes())
    edit(document)
    (tmp_path / EVALUATION).write_text(json.dumps(document))
    with pytest.raises(HermetiqError, match=told):
        Evaluation.read(tmp_path)
