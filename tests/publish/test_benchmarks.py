"""Benchmarks on a card: of the very artifacts it is about, before and after, and as text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hermetiq.errors import HermetiqError
from hermetiq.manifest import EVALUATION, Manifest
from hermetiq.publish import own_text, prepare
from hermetiq.publish.benchmarks import benchmarks
from hermetiq.publish.card import card
from tests.evaluate.test_results import of_export, score
from tests.publish.release import small_export


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return small_export(tmp_path, ["gguf:Q8_0", "gguf:Q4_K_M", "gptq:4bit-g64"])


def cards(folder: Path) -> dict[str, str]:
    job = prepare(folder, "ada/Hermes", base_model="ada/Hermes-Fine")
    return {repo.id.rpartition("-")[2]: card(job.release, repo, own_text.EMPTY) for repo in job.plan.repos}


def test_a_card_has_the_tables_of_its_own_artifacts(manifest: Manifest, tmp_path: Path) -> None:
    assert "Benchmarks" not in cards(tmp_path)["GGUF"]
    of_export(manifest).write(tmp_path)
    found = cards(tmp_path)
    assert "| arc | 1.0 | none | 0 | acc | ↑ | 0.5000 ± 0.0100 | 0.4700 ± 0.0100 |" in found["GPTQ"]
    assert "| gptq-4bit-g64 | 1 | 0.5000 | 0.4700 | -0.0300 |" in found["GPTQ"]
    assert "| 0.5000 ± 0.0100 | 0.4900 ± 0.0100 | 0.4800 ± 0.0100 |" in found["GGUF"]
    assert "gptq" not in found["GGUF"].partition("## Benchmarks")[2].partition("\n## ")[0]


def test_results_of_other_bytes_stay_off_the_card(manifest: Manifest, tmp_path: Path) -> None:
    found = of_export(manifest)
    first, *others = found.artifacts
    replace(found, artifacts=(replace(first, sha256="0" * 64), *others)).write(tmp_path)
    shown = cards(tmp_path)["GGUF"].partition("## Benchmarks")[2].partition("\n## ")[0]
    assert "Q4" in shown
    assert "Q8" not in shown
    replace(found, fingerprint="0" * 64).write(tmp_path)
    assert "Benchmarks" not in cards(tmp_path)["GGUF"]


def test_damaged_results_stop_the_release(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / EVALUATION).write_text("{")
    with pytest.raises(HermetiqError, match="not JSON"):
        prepare(tmp_path, "ada/Hermes", base_model="ada/Hermes-Fine")


def test_the_name_of_a_task_is_no_markup(manifest: Manifest) -> None:
    hostile = score("a|b](https://x.y)\n# c <script>")
    found = of_export(manifest)
    only = replace(found.artifacts[0], scores=(hostile,))
    shown = benchmarks(replace(found, source=(hostile,), artifacts=(only,), limit=3), {only.file})
    (line,) = [line for line in shown.splitlines() if "https" in line]
    assert line.startswith(r"| a\|b\]\(https://x.y\) \# c &lt;script&gt; | 1.0 |")
    assert "no result to compare with others" in shown
    assert benchmarks(found, {"another"}) == ""
