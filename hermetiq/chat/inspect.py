"""Lint a checkpoint or an artifact against the rules: open it, derive its contract, run the checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hermetiq.chat.checks import CHECKS, READS_WEIGHTS
from hermetiq.chat.contract import ChatContract, to_json
from hermetiq.chat.subject import Subject, examine
from hermetiq.checkpoint import open_checkpoint
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.errors import Finding, Refusal
from hermetiq.rules import RULES, named


@dataclass(frozen=True)
class Inspection:
    """The findings on one checkpoint, and its contract as far as one could be derived."""

    path: str
    contract: ChatContract | None
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """`path`, `contract` (or null) and `findings`, with these keys in every version."""
        return {
            "path": self.path,
            "contract": None if self.contract is None else to_json(self.contract),
            "findings": [asdict(item) for item in self.findings],
        }


def inspect(
    path: str,
    *,
    adapter: str | None = None,
    parents: Sequence[str] = (),
    weights: bool = True,
    files_only: bool = False,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    base_model: bool = False,
) -> Inspection:
    """Open `path` and lint it; what stops it from opening becomes findings.

    Args:
        path: folder, .gguf file or Hub id.
        adapter: LoRA folder, merged at load.
        parents: folders of the models that it was merged of, to hold it against.
        weights: also run the rules that read tensors.
        files_only: the weights are not there, as in a clone without Git LFS; the other files are held
            against each other.
        select: only these rules; all where empty.
        ignore: not these rules.
        base_model: there is no template, and that is right.

    Raises:
        HermetiqError: no such path or parent, an unsupported family, an unknown rule in `select` or `ignore`, or a
            `base_model` that has a template.
    """
    rules = chosen_rules(select=select, ignore=ignore)
    try:
        checkpoint = open_checkpoint(path, adapter=adapter, weights=not files_only)
    except Refusal as refusal:
        return Inspection(str(path), None, tuple(item for item in refusal.findings if item.rule in rules))
    return lint(
        checkpoint,
        path=str(path),
        parents=parents,
        weights=weights and not files_only,
        select=select,
        ignore=ignore,
        base_model=base_model,
    )


def lint(
    checkpoint: Checkpoint,
    *,
    path: str | None = None,
    parents: Sequence[str] = (),
    weights: bool = True,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    base_model: bool = False,
) -> Inspection:
    """`inspect` for a checkpoint that is open already."""
    subject = examine(checkpoint, parents, base_model=base_model)
    rules = chosen_rules(select=select, ignore=ignore)
    return Inspection(path or str(checkpoint.path), subject.contract, tuple(_findings(subject, rules, weights=weights)))


def chosen_rules(*, select: Sequence[str] = (), ignore: Sequence[str] = ()) -> frozenset[str]:
    """The names of the rules to run.

    Raises:
        HermetiqError: a name that is no rule's, with the nearest ones.
    """
    chosen = {named(name).name for name in select} or set(RULES)
    return frozenset(chosen - {named(name).name for name in ignore})


def _findings(subject: Subject, rules: frozenset[str], *, weights: bool) -> Iterator[Finding]:
    for rule, check in CHECKS.items():
        if rule in rules:
            yield from (item for item in subject.noticed if item.rule == rule)
            if weights or rule not in READS_WEIGHTS:
                yield from check(subject)
