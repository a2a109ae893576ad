"""What the checks look at: one checkpoint, with what rendering its template showed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from hermetiq.chat.contract import ChatContract, base_contract, contract_of
from hermetiq.chat.parents import Parents, read_parents
from hermetiq.chat.probe import Probe, probe
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.errors import Finding, Refusal

if TYPE_CHECKING:
    from hermetiq.chat.weight_scan import WeightScan


@dataclass(frozen=True)
class Subject:
    """A checkpoint, and how far its contract could be derived."""

    checkpoint: Checkpoint
    probe: Probe | None
    contract: ChatContract | None
    noticed: tuple[Finding, ...]
    """Findings of opening the checkpoint, of reading its parents and of deriving its contract."""
    parents: Parents
    """What the user says that the checkpoint was merged of."""

    @cached_property
    def scan(self) -> WeightScan:
        """What the tensors show; nothing is read before it is asked for."""
        from hermetiq.chat.weight_scan import WeightScan

        return WeightScan(self.checkpoint)


Check = Callable[[Subject], Iterator[Finding]]


def examine(checkpoint: Checkpoint, parents: Sequence[str] = (), *, base_model: bool = False) -> Subject:
    """Derive the contract as far as possible; what stops that becomes findings.

    Args:
        parents: folders of a merge's parents, to hold it against.
        base_model: there is no template, and that is right.

    Raises:
        HermetiqError: no such parent, or a `base_model` that has a template.
    """
    merged = read_parents(checkpoint, parents)
    noticed, seen, contract = (*checkpoint.findings, *merged.findings), None, None
    try:
        seen = None if base_model else probe(checkpoint)
        contract = base_contract(checkpoint) if seen is None else contract_of(checkpoint, seen)
    except Refusal as refusal:
        noticed += refusal.findings
    return Subject(checkpoint, seen, contract, noticed, merged)
