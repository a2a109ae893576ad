"""What artifacts take from the journal of a finished pass: tensors, configurations, and what is to be told of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from hermetiq.calibration.activations import fp16_findings
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.errors import Finding
from hermetiq.formats import awq, exl2, gptq
from hermetiq.formats.linear_plan import LinearPlan
from hermetiq.journal import Journal
from hermetiq.manifest import Solving
from hermetiq.measurement import TOLERANCE
from hermetiq.model import EMBEDDING, HEAD
from hermetiq.plan import Job
from hermetiq.quantize.factor import DAMPING
from hermetiq.rules import finding
from hermetiq.tracks import IMPORTANCE, Tracks, narrowed, sound


def findings(journal: Journal, known: Tracks) -> tuple[Finding, ...]:
    """What the activations gave away, `fp16-range`, and what EXL2 did not spend, `bits-unspent`."""
    peaks: dict[str, float] = {}
    for index in range(journal.blocks):
        peaks |= journal.notes(index).get("peaks", {})
    return (*fp16_findings(peaks), *_unspent(known))


def _unspent(known: Tracks) -> Iterator[Finding]:
    for path, track in known.folders.items():
        if track.rungs and known.measurement:
            target = track.plan.spec.mixed.bpw
            if known.measurement.shortfall(track.rungs, target) > TOLERANCE:
                found = f"{known.measurement.bpw_of(track.rungs):.3f} bits per weight"
                yield finding(
                    "bits-unspent", file=path, found=found, expected=f"{target * (1 - TOLERANCE):.3f} or more"
                )


def solving(journal: Journal, track: str) -> Solving:
    """Where the solver had to depart from its plain way for one folder."""
    notes = [journal.notes(index).get("steps", {}).get(track, []) for index in range(journal.blocks)]
    steps = [step for block in notes for step in block]
    return Solving(dict(sorted(Counter(step.rpartition(": ")[2] for step in steps).items())), tuple(steps))


def errors(journal: Journal, track: str) -> dict[str, float]:
    """What rounding did to each layer of one folder, by module, as `SolvedBlock.errors` has it."""
    found: dict[str, float] = {}
    for index in range(journal.blocks):
        found |= journal.notes(index).get("errors", {}).get(track, {})
    return found


def importance(journal: Journal, *, tied: bool) -> dict[str, Tensor]:
    """What each input column counts for, (in,), by the name of the weight; a tied head's is its embedding's."""
    found = {name: _positive(journal.load(IMPORTANCE, name)) for name in journal.names(IMPORTANCE)}
    if tied:
        found[EMBEDDING] = found.pop(HEAD)
    return found


def _positive(importance: Tensor) -> Tensor:  # (in,)
    """llama.cpp divides by sums of these: a column that was never active still counts a little."""
    mean = importance.mean()
    return importance.clamp(min=float(mean) * 1e-6) if mean > 0 else torch.ones_like(importance)


def quantization(job: Job, plan: LinearPlan) -> dict[str, Any]:
    """`quantization_config` of a folder."""
    return _CONFIG[plan.spec.format](job, plan)


def _exl2_config(job: Job, plan: LinearPlan) -> dict[str, Any]:
    assert job.rows
    rows = job.rows.rows
    dataset = Path(job.rows.report.source).name
    return exl2.config(plan.spec.mixed, rows=len(rows), length=max(map(len, rows)), dataset=dataset)


_CONFIG: Final[Mapping[str, Callable[[Job, LinearPlan], dict[str, Any]]]] = {
    "gptq": lambda _, plan: gptq.config(plan.spec.linear, damp_percent=DAMPING),
    "awq": lambda _, plan: awq.config(plan.spec.linear),
    "exl2": _exl2_config,
}


def stored(
    source: Checkpoint, plan: LinearPlan, journal: Journal, track: str, others: Mapping[str, Tensor] | None = None
) -> Callable[[str], Tensor]:
    """The tensors of a folder by name: `others`, the journal's, and the checkpoint's own for what no block holds."""
    load, made, given = sound(source, narrow=True), set(journal.names(track)), dict(others or {})

    def tensor(name: str) -> Tensor:
        if name in given:
            return given[name]
        if name in made:
            return journal.load(track, name)
        own = EMBEDDING if name == HEAD and plan.model.tied else name
        return narrowed(name, load(own), plan.dtypes[name])

    return tensor
