"""The one calibration pass, feeding every format at once, and resumable after each block.

A track is what one artifact takes from a block: the packed layers of a GPTQ, AWQ or EXL2 folder, or the importance of
each column for all GGUF files. After a block, what all tracks made of it goes to the journal in one step.

EXL2 divides its bits over the whole model, so no block can be rounded before all are measured. The pass therefore
measures, and keeps each block's statistics; once the widths are chosen, the blocks are rounded from those, in journal
blocks of their own behind the pass. With a measurement at hand the widths are known and nothing has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from hermetiq import __version__
from hermetiq.calibration.observe import Block, observe
from hermetiq.calibration.sensitivity import choose_probe_rows
from hermetiq.calibration.statistics import Statistics
from hermetiq.calibration.sums import arithmetic
from hermetiq.calibration.walk import head_matrix
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.checkpoint.finite import extent, f16_finding, nan_finding
from hermetiq.errors import HermetiqError, Refusal
from hermetiq.formats import awq, exl2, gptq
from hermetiq.formats.exl2_plan import HEAD_MODULE, allocated
from hermetiq.formats.linear_plan import LinearPlan, linears
from hermetiq.journal import Journal
from hermetiq.measurement import Layer, Measurement
from hermetiq.model import HEAD, block_prefix
from hermetiq.plan import Job
from hermetiq.progress import Ticker, part
from hermetiq.quantize.block import BlockSolver, Rungs, SolvedBlock, solve_head
from hermetiq.quantize.factor import DAMPING
from hermetiq.quantize.fold import GROUPS
from hermetiq.quantize.ladder import LADDER, Rung
from hermetiq.quantize.measure import disturbed
from hermetiq.quantize.result import MixedLinear, QuantizedLinear
from hermetiq.quantize.spec import LinearRecipe

IMPORTANCE: Final = "importance"
"""The track of all GGUF files: mean square of each input column, first tokens counted as below, by weight."""
FIRST_TOKEN_WEIGHT: Final = 16
"""How often the first token of a row counts. All others attend to it, so its error is everybody's: on SmolLM2 at four
bits KL fell from .216 to .165, and more weight than that won nothing."""
_SEQUENTIAL: Final = "sequential"
"""The track that a resumed sequential calibration runs its finished blocks from."""
_STATISTICS: Final = "statistics"
"""The track that EXL2's blocks are rounded from: Gram matrices by the first linear that has the input."""
_WALKED: Final = 0.6
"""Share of the work that is done when the pass is, where blocks are rounded behind it."""
_PACK: Final[Mapping[str, Callable[[QuantizedLinear, LinearRecipe], dict[str, Tensor]]]] = {
    "gptq": gptq.pack,
    "awq": awq.pack,
}


@dataclass(frozen=True)
class Track:
    """What one folder takes from each block."""

    plan: LinearPlan
    rungs: Mapping[str, Rung] = field(default_factory=dict)
    """EXL2: the widths of each layer, by the name of its module."""

    def recipe(self, prefix: str) -> LinearRecipe | Rungs:
        """For the block whose tensors' names begin with `prefix`."""
        if not self.rungs:
            return self.plan.spec.linear
        return {
            f"{name.removeprefix(prefix)}.weight": rung for name, rung in self.rungs.items() if name.startswith(prefix)
        }


@dataclass(frozen=True)
class Tracks:
    """What calibration knows when it is through, beside the journal."""

    folders: Mapping[str, Track] = field(default_factory=dict)
    """By path."""
    measurement: Measurement | None = None
    """What EXL2's widths were chosen by."""


def identity(job: Job, device: torch.device) -> dict[str, str]:
    """All that the journal's tensors depend on, in words that tell a person what changed."""
    assert job.rows
    return {
        "source": job.fingerprint,
        "calibration": job.rows.sha256,
        "specs": ", ".join(str(spec) for spec in job.specs.values() if spec.format != "gguf"),
        "importance matrix": "yes" if job.importance else "no",
        "measurement": job.measurement.sha256 if job.measurement else "taken here",
        "sequential": "yes" if job.sequential else "no",
        "device": device.type,
        "arithmetic": arithmetic("auto", device),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "hermetiq": __version__,
    }


def calibrate(job: Job, journal: Journal, device: torch.device, tick: Ticker) -> Tracks:
    """Walk the model once and put what every track makes of each block into the journal, from where it ends.

    Raises:
        Refusal: `weight-nan`, `f16-overflow`, `hessian-nan`.
        HermetiqError: a weight is beyond what a format can express; the model's family cannot be run.
    """
    folders = {path: Track(plan) for path, plan in job.linear.items()}
    known = job.measurement
    if known:
        folders |= _mixed(job, known)
    try:
        _walk(job, journal, folders, device, part(tick, 0.0, _WALKED if job.measures else 1.0))
    except BaseException:
        # Nothing was made, so there is nothing to resume or to stand in the way of another export.
        if not journal.blocks:
            journal.remove()
        raise
    if job.measures:
        known = _measurement(job, journal)
        mixed = _mixed(job, known)
        _round(job, journal, mixed, device, part(tick, _WALKED, 1.0))
        folders |= mixed
    return Tracks(folders, known)


def _measurement(job: Job, journal: Journal) -> Measurement:
    """What each rung costs each layer, as the pass found it."""
    assert job.rows
    shapes, depth = linears(job.source.model), job.source.model.layers
    divergences = journal.notes(depth)["divergences"]
    layers = {}
    for index in range(depth):
        measured = journal.notes(index)["measured"]
        for name, errors in measured["errors"].items():
            module, energy = name.removesuffix(".weight"), measured["disturbances"][name]
            # Estimated on a sample of the vocabulary, so a disturbance of nothing may come out below it.
            factor = max(divergences[name], 0.0) / energy if energy > 0 else 0.0
            layers[module] = Layer(*shapes[module], tuple(errors), factor)
    return Measurement(job.fingerprint, job.rows.sha256, LADDER, layers)


def _mixed(job: Job, known: Measurement) -> dict[str, Track]:
    """The tracks of EXL2 folders, their widths chosen."""
    tracks = {}
    for path, planned in job.mixed.items():
        rungs = known.allocated(planned.spec.mixed.bpw)
        tracks[path] = Track(allocated(planned, rungs), rungs)
    return tracks


def _walk(job: Job, journal: Journal, tracks: Mapping[str, Track], device: torch.device, tick: Ticker) -> None:
    assert job.rows
    if journal.blocks > job.source.model.layers:
        return
    observe(
        job.source.config,
        sound(job.source, narrow=bool(job.folders)),
        job.rows.rows,
        _Visitor(job, journal, tracks),
        device=device,
        first_token_weight=FIRST_TOKEN_WEIGHT,
        sequential=job.sequential,
        start=journal.blocks,
        replaced=(lambda index: journal.read(index, _SEQUENTIAL)) if job.sequential else None,
        disturb=(lambda _, weight: disturbed(weight)) if job.measures else None,
        probe_rows=choose_probe_rows(job.rows.rows) if job.measures else (),
        on_block=lambda done, of: tick(f"calibrating block {min(done + 1, of)} of {of}", done / of),
    )


def _round(job: Job, journal: Journal, tracks: Mapping[str, Track], device: torch.device, tick: Ticker) -> None:
    """Round every block from the statistics that the pass kept, in journal blocks behind those of the pass."""
    depth, load = job.source.model.layers, sound(job.source, narrow=True)
    names = job.source.model.expected_tensors()
    for index in range(journal.blocks - depth - 1, depth):
        prefix = block_prefix(index)
        weights = {
            name.removeprefix(prefix): load(name).to(device, torch.float32) for name in names if name.startswith(prefix)
        }
        solver = BlockSolver(weights, _restored(journal, index, device), job.source.model)
        solved = {path: solver.solve(track.recipe(prefix)) for path, track in tracks.items()}
        journal.write(depth + 1 + index, *_kept(solved, prefix, tracks))
        tick(f"rounding block {index + 1} of {depth}", (index + 1) / depth)


def _restored(journal: Journal, index: int, device: torch.device) -> dict[str, Statistics]:
    """What went into each linear of a block, by the name of its weight below the block."""
    matrices, notes = journal.read(index, _STATISTICS), journal.notes(index)["statistics"]
    inputs: dict[str, Statistics] = {}
    for group in GROUPS:
        leader = group.linears[0]
        inputs |= dict.fromkeys(group.linears, Statistics.restored(matrices[leader].to(device), notes[leader]))
    return inputs


@dataclass(frozen=True)
class _Visitor:
    """What is done with each block while it is in memory."""

    job: Job
    journal: Journal
    tracks: Mapping[str, Track]

    def __call__(self, block: Block) -> Mapping[str, Tensor] | None:
        tensors: dict[str, Mapping[str, Tensor]] = {}
        notes: dict[str, Any] = {"peaks": dict(block.peaks), "divergences": dict(block.divergences)}
        if self.job.importance:
            tensors[IMPORTANCE] = {name: item.importance for name, item in block.inputs.items()}
        replacement = None
        if not block.weights:
            tensors |= self._heads(block.inputs[HEAD])
        elif self.job.linear or self.job.mixed:
            prefix = block_prefix(block.index)
            solver = BlockSolver.of(block, self.job.source.model)
            solved = {path: solver.solve(track.recipe(prefix)) for path, track in self.tracks.items()}
            made, said = _kept(solved, prefix, self.tracks)
            tensors, notes = tensors | made, notes | said
            if self.job.measures:
                measured = solver.measure(LADDER)
                leaders = {group.linears[0]: block.inputs[prefix + group.linears[0]] for group in GROUPS}
                tensors[_STATISTICS] = {name: item.triangle for name, item in leaders.items()}
                notes["statistics"] = {name: item.notes for name, item in leaders.items()}
                notes["measured"] = {
                    "errors": {prefix + name: errors for name, errors in measured.errors.items()},
                    "disturbances": {prefix + name: energy for name, energy in measured.disturbances.items()},
                }
            if self.job.sequential:
                tensors[_SEQUENTIAL] = replacement = _sequential(solved, prefix)
        self.journal.write(block.index, tensors, notes)
        return replacement

    def _heads(self, seen: Statistics) -> dict[str, Mapping[str, Tensor]]:
        """The head of every EXL2 folder, by path; the other folders keep it as it is."""
        if not self.job.mixed:
            return {}
        load = sound(self.job.source, narrow=True)
        weight = head_matrix(self.job.source.config, load).to(seen.gram.device, torch.float32)
        rungs = {path: planned.head for path, planned in self.job.mixed.items()}
        made = {rung: exl2.pack(solve_head(weight, seen, rung).linear) for rung in set(rungs.values())}
        return {
            path: {f"{HEAD_MODULE}.{part}": tensor for part, tensor in made[rung].items()}
            for path, rung in rungs.items()
        }


def _sequential(solved: Mapping[str, SolvedBlock], prefix: str) -> dict[str, Tensor]:
    """The block's tensors as its artifact has them."""
    (made,) = solved.values()
    others = {name: tensor.half().float() for name, tensor in made.others.items()}
    linears = {name: linear.dequantize() for name, linear in made.linears.items()}
    return {prefix + name: tensor for name, tensor in (others | linears).items()}


def _kept(
    solved: Mapping[str, SolvedBlock], prefix: str, tracks: Mapping[str, Track]
) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
    """What the journal keeps of a solved block: tensors by track, and notes."""
    tensors = {path: dict(_packed(made, prefix, tracks[path].plan)) for path, made in solved.items()}
    notes = {
        "errors": {
            path: {prefix + name.removesuffix(".weight"): error for name, error in made.errors.items()}
            for path, made in solved.items()
        },
        "steps": {path: [f"{prefix}{step}" for step in made.steps] for path, made in solved.items()},
    }
    return {**tensors}, notes


def _packed(made: SolvedBlock, prefix: str, plan: LinearPlan) -> Iterator[tuple[str, Tensor]]:
    """The stored tensors of a block, by their full names.

    Raises:
        CheckFailed: zero-points that a reader would take for others (U24).
    """
    for weight, linear in made.linears.items():
        module = prefix + weight.removesuffix(".weight")
        for part_name, tensor in _parts(module, linear, plan).items():
            yield f"{module}.{part_name}", tensor
    for name, tensor in made.others.items():
        yield prefix + name, narrowed(prefix + name, tensor, plan.dtypes[prefix + name])


def _parts(module: str, linear: QuantizedLinear | MixedLinear, plan: LinearPlan) -> dict[str, Tensor]:
    if isinstance(linear, MixedLinear):
        return exl2.pack(linear)
    parts = _PACK[plan.spec.format](linear, plan.spec.linear)
    if plan.spec.format == "gptq":
        gptq.check_zeros(module, parts["qzeros"], linear.zeros, gptq.config(plan.spec.linear, damp_percent=DAMPING))
    return parts


def narrowed(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in the type it is stored in.

    Raises:
        HermetiqError: a value is beyond that type.
    """
    narrowed = tensor.to(dtype)
    if not bool(narrowed.isfinite().all()):
        raise HermetiqError(
            f"a value of {float(tensor.abs().max()):.0f} is beyond {dtype}", where=name, remedy="gguf:Q8_0 holds it"
        )
    return narrowed


def sound(source: Checkpoint, *, narrow: bool) -> Callable[[str], Tensor]:
    """`source.load`, refusing where they are first read NaN and infinity (`weight-nan`).

    Args:
        narrow: also refuse what float16 cannot hold (`f16-overflow`); every folder is read in that type.
    """

    def load(name: str) -> Tensor:
        tensor, file = source.load(name), source.tensors[name].file
        seen = extent(tensor)
        if found := nan_finding(name, seen, file) or (
            f16_finding(name, seen, file, severity="error") if narrow else None
        ):
            raise Refusal(found)
        return tensor

    return load
