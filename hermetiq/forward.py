"""The forward gate: one pass of the full-precision model over held-out chats, before anything is made of it.

Files and rows of a checkpoint can be in order while the model behind them is not: it never learned to stop (U40), its
activations are NaN (U31, U32), or larger than float16 holds (U08). No rule that reads files sees that, and after an
export the quantizer is blamed for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any, Final

from hermetiq.calibration import walk
from hermetiq.calibration.activations import fp16_findings
from hermetiq.calibration.peaks import final_hidden_and_peaks
from hermetiq.chat.contract import ChatContract
from hermetiq.chat.inspect import Inspection, chosen_rules
from hermetiq.checkpoint import open_checkpoint
from hermetiq.errors import Finding, Refusal
from hermetiq.progress import Ticker, silent
from hermetiq.rules import finding
from hermetiq.verify.fidelity import Readiness, turn_ends_of
from hermetiq.verify.judge import number
from hermetiq.verify.reference import held_out
from hermetiq.verify.terminator import CHOICES, NEVER_STOPS, never_stops

PLACE: Final = "held-out chats"
"""Stands in a finding where others name a file: these faults show only when the model runs."""
_OF_ACTIVATIONS: Final = ("hessian-nan", "fp16-range")


@dataclass(frozen=True)
class Forward:
    """What one pass showed; log-probabilities in nats, rank 1 is the first choice."""

    findings: tuple[Finding, ...]
    chats: int
    turn_ends: int
    first_choices: int | None = None
    """Turn ends where the terminator is the first choice; None, here and below, where activations were broken."""
    median_rank: float | None = None
    mean_logprob: float | None = None
    largest_activation: float | None = None
    notes: tuple[str, ...] = ()
    """Chats that were left out, and why."""

    def to_json(self) -> dict[str, Any]:
        """The figures with stable keys; findings stand among those of `inspect`."""
        return {
            "chats": self.chats,
            "turn_ends": self.turn_ends,
            "first_choices": self.first_choices,
            "median_rank": self.median_rank,
            "mean_logprob": self.mean_logprob,
            "largest_activation": self.largest_activation,
            "notes": list(self.notes),
        }


def forward(path: str, contract: ChatContract, *, adapter: str | None = None, tick: Ticker = silent) -> Forward:
    """Open a checkpoint and run it over the held-out chats in float32, one decoder block in memory at a time.

    Args:
        path: folder, .gguf file or Hub id.
        contract: as `inspect` found it.
        adapter: LoRA folder, merged at load.

    Raises:
        Refusal: the checkpoint cannot be opened, or a tensor not be read.
        HermetiqError: no held-out chat fits the template and the context.
    """
    checkpoint = open_checkpoint(path, adapter=adapter)
    chats = held_out(checkpoint, contract)
    tick("running the model", 0.0)
    try:
        states, peaks = final_hidden_and_peaks(
            checkpoint.config,
            checkpoint.load,
            chats.rows,
            on_block=lambda done, blocks: tick("running the model", done / blocks),
        )
    except Refusal as refusal:
        return Forward(tuple(map(_placed, refusal.findings)), len(chats.rows), len(chats.ends), notes=chats.notes)
    rows = list(zip(chats.rows, states, strict=True))
    logits = walk.head(checkpoint.config, checkpoint.load)
    ends = turn_ends_of(rows, logits, chats.ends, contract.terminator_id)
    return Forward(
        findings=(*_stopping(ends, contract), *map(_placed, fp16_findings(peaks))),
        chats=len(chats.rows),
        turn_ends=len(ends),
        first_choices=sum(end.rank == 1 for end in ends),
        median_rank=median(end.rank for end in ends),
        mean_logprob=number(fmean(end.logprob for end in ends)),
        largest_activation=number(max(peaks.values())),
        notes=chats.notes,
    )


def joined(
    inspection: Inspection, seen: Forward, *, select: Sequence[str] = (), ignore: Sequence[str] = ()
) -> Inspection:
    """The inspection with what the pass found by the rules that were asked for, as `inspect` takes them."""
    rules = chosen_rules(select=select, ignore=ignore)
    return replace(inspection, findings=(*inspection.findings, *(item for item in seen.findings if item.rule in rules)))


def _stopping(ends: Sequence[Readiness], contract: ChatContract) -> Iterator[Finding]:
    if found := never_stops(ends, contract):
        yield finding(NEVER_STOPS, file=PLACE, found=found, expected=f"a median rank of at most {CHOICES}")


def _placed(item: Finding) -> Finding:
    """A finding about activations, which did not come up in calibration here."""
    return replace(item, file=PLACE) if item.rule in _OF_ACTIVATIONS else item
