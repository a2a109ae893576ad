"""The one calibration pass, feeding every format at once, and resumable after each block.

A track is what one artifact takes from a block: the packed layers of a GPTQ or AWQ folder, or the importance of each
column for all GGUF files. After a block, what all tracks made of it goes to the journal in one step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from hermetiq import __version__
from hermetiq.calibration.activations import fp16_findings
from hermetiq.calibration.observe import Block, observe
from hermetiq.calibration.sums import arithmetic
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.checkpoint.finite import check_finite
from hermetiq.errors import Finding, HermetiqError, Refusal
from hermetiq.formats import awq, gptq
from hermetiq.formats.linear_plan import LinearPlan
from hermetiq.journal import Journal
from hermetiq.manifest import Solving
from hermetiq.model import EMBEDDING, HEAD
from hermetiq.plan import Job
from hermetiq.progress import Ticker
from hermetiq.quantize.block import BlockSolver, SolvedBlock
from hermetiq.quantize.factor import DAMPING
from hermetiq.quantize.result import QuantizedLinear
from hermetiq.quantize.spec import LinearRecipe

IMPORTANCE: Final = "importance"
"""The track of all GGUF files: mean square of each input column, first tokens counted as below, by weight."""
FIRST_TOKEN_WEIGHT: Final = 16
"""How often the first token of a row counts. All others attend to it, so its error is everybody's: on SmolLM2 at four
bits KL fell from .216 to .165, and more weight than that won nothing."""
_SEQUENTIAL: Final = "sequential"
"""The track that a resumed sequential calibration runs its finished blocks from."""
_PACK: Final[Mapping[str, Callable[[QuantizedLinear, LinearRecipe], dict[str, Tensor]]]] = {
    "gptq": gptq.pack,
    "awq": awq.pack,
}


def identity(job: Job, device: torch.device) -> dict[str, str]:
    """All that the journal's tensors depend on, in words that tell a person what changed."""
    assert job.rows
    return {
        "source": job.fingerprint,
        "calibration": job.rows.sha256,
        "specs": ", ".join(str(plan.spec) for plan in job.linear.values()),
        "importance matrix": "yes" if job.importance else "no",
        "sequential": "yes" if job.sequential else "no",
        "device": device.type,
        "arithmetic": arithmetic("auto", device),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "hermetiq": __version__,
    }


def calibrate(job: Job, journal: Journal, device: torch.device, tick: Ticker) -> None:
    """Walk the model once and put what every track makes of each block into the journal, from where it ends.

    Raises:
        Refusal: `weight-nan`, `hessian-nan`.
        HermetiqError: a weight is beyond what a format can express; the model's family cannot be run.
    """
    assert job.rows
    depth = job.source.model.layers
    if journal.blocks > depth:
        return
    try:
        observe(
            job.source.config,
            _sound(job.source),
            job.rows.rows,
            _Visitor(job, journal),
            device=device,
            first_token_weight=FIRST_TOKEN_WEIGHT,
            sequential=job.sequential,
            start=journal.blocks,
            replaced=(lambda index: journal.read(index, _SEQUENTIAL)) if job.sequential else None,
            on_block=lambda done, of: tick(f"calibrating block {min(done + 1, of)} of {of}", done / of),
        )
    except BaseException:
        # Nothing was made, so there is nothing to resume or to stand in the way of another export.
        if not journal.blocks:
            journal.remove()
        raise


def findings(journal: Journal) -> tuple[Finding, ...]:
    """What the activations gave away: `fp16-range`."""
    peaks: dict[str, float] = {}
    for index in range(journal.blocks):
        peaks |= journal.notes(index)["peaks"]
    return fp16_findings(peaks)


def solving(journal: Journal, track: str) -> Solving:
    """Where the solver had to depart from its plain way for one folder."""
    notes = [journal.notes(index)["steps"].get(track, []) for index in range(journal.blocks)]
    steps = [step for block in notes for step in block]
    return Solving(dict(sorted(Counter(step.rpartition(": ")[2] for step in steps).items())), tuple(steps))


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


def quantization(plan: LinearPlan) -> dict[str, Any]:
    """`quantization_config` of a folder."""
    recipe = plan.spec.linear
    return awq.config(recipe) if plan.spec.format == "awq" else gptq.config(recipe, damp_percent=DAMPING)


def stored(source: Checkpoint, plan: LinearPlan, journal: Journal, track: str) -> Callable[[str], Tensor]:
    """The tensors of a folder by name: those of the journal, and the checkpoint's own for what no block holds."""
    load, made = _sound(source), set(journal.names(track))

    def tensor(name: str) -> Tensor:
        if name in made:
            return journal.load(track, name)
        own = EMBEDDING if name == HEAD and plan.model.tied else name
        return _narrowed(name, load(own), plan.dtypes[name])

    return tensor


@dataclass(frozen=True)
class _Visitor:
    """What is done with each block while it is in memory."""

    job: Job
    journal: Journal

    def __call__(self, block: Block) -> Mapping[str, Tensor] | None:
        prefix = f"model.layers.{block.index}."
        tensors: dict[str, Mapping[str, Tensor]] = {}
        if self.job.importance:
            tensors[IMPORTANCE] = {name: item.importance for name, item in block.inputs.items()}
        solved: Mapping[str, SolvedBlock] = {}
        if block.weights and self.job.linear:
            solver = BlockSolver(
                {name.removeprefix(prefix): weight for name, weight in block.weights.items()},
                {name.removeprefix(prefix): item for name, item in block.inputs.items()},
                self.job.source.model,
            )
            solved = {track: solver.solve(plan.spec.linear) for track, plan in self.job.linear.items()}
        for track, made in solved.items():
            tensors[track] = dict(_packed(made, prefix, self.job.linear[track]))
        replacement = _sequential(solved, prefix) if self.job.sequential and solved else None
        if replacement is not None:
            tensors[_SEQUENTIAL] = replacement
        notes = {
            "peaks": dict(block.peaks),
            "errors": {track: dict(made.errors) for track, made in solved.items()},
            "steps": {track: [f"{prefix}{step}" for step in made.steps] for track, made in solved.items()},
        }
        self.journal.write(block.index, tensors, notes)
        return replacement


def _sequential(solved: Mapping[str, SolvedBlock], prefix: str) -> dict[str, Tensor]:
    """The block's tensors as its artifact has them."""
    (made,) = solved.values()
    others = {name: tensor.half().float() for name, tensor in made.others.items()}
    linears = {name: linear.dequantize() for name, linear in made.linears.items()}
    return {prefix + name: tensor for name, tensor in (others | linears).items()}


def _packed(made: SolvedBlock, prefix: str, plan: LinearPlan) -> Iterator[tuple[str, Tensor]]:
    """The stored tensors of a block, by their full names.

    Raises:
        CheckFailed: zero-points that a reader would take for others (U24).
    """
    recipe, config = plan.spec.linear, quantization(plan)
    for weight, linear in made.linears.items():
        assert isinstance(linear, QuantizedLinear)
        module = prefix + weight.removesuffix(".weight")
        parts = _PACK[plan.spec.format](linear, recipe)
        if plan.spec.format == "gptq":
            gptq.check_zeros(module, parts["qzeros"], linear.zeros, config)
        for part, tensor in parts.items():
            yield f"{module}.{part}", tensor
    for name, tensor in made.others.items():
        yield prefix + name, _narrowed(prefix + name, tensor, plan.dtypes[prefix + name])


def _narrowed(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
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


def _sound(source: Checkpoint) -> Callable[[str], Tensor]:
    """`source.load`, refusing NaN and infinity where they are first read (`weight-nan`)."""

    def load(name: str) -> Tensor:
        tensor = source.load(name)
        if found := check_finite(name, tensor, source.tensors[name].file):
            raise Refusal(found)
        return tensor

    return load
