"""`hermetiq.inspect`: the rules, and on request a pass of the model over held-out chats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hermetiq.chat.inspect import Inspection
from hermetiq.chat.inspect import inspect as lint
from hermetiq.errors import HermetiqError
from hermetiq.progress import Ticker, silent

if TYPE_CHECKING:
    from hermetiq.forward import Forward


@dataclass(frozen=True)
class Inspected(Inspection):
    """An inspection, and what the model did when it was run."""

    forward: Forward | None = None
    """None where no pass was asked for, or there is no chat contract to hold one against."""


def inspect(
    path: str | Path,
    *,
    adapter: str | None = None,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    parents: Sequence[str] = (),
    weights: bool = True,
    files_only: bool = False,
    forward: bool = False,
    base_model: bool = False,
    progress: Ticker = silent,
) -> Inspected:
    """Lint a checkpoint or an artifact against the rules; what stops it from opening becomes findings.

    Args:
        path: folder, .gguf file or Hub id.
        adapter: LoRA folder (peft layout), merged at load.
        select: only these rules; all where empty.
        ignore: not these rules.
        parents: folders of the models that it was merged of, or trained from, to hold it against.
        weights: scan the tensors for NaN and untrained rows.
        files_only: the weights are not here; look at the other files alone.
        forward: run the model over held-out chats too: does it stop, does float16 hold it?
        base_model: the model has no chat template, and that is right.
        progress: called with what is being done and the share, 0 to 1, that is done.

    Raises:
        HermetiqError: no such path or parent, an unsupported family, an unknown rule, a `base_model` that has a
            template, `files_only` with what needs weights, or no held-out chat that fits the model.
        Refusal: the pass could not read a tensor.
    """
    if files_only and (adapter or forward):
        raise HermetiqError("a merge and a forward pass need the weights", where="--files-only", remedy="leave it out")
    progress("reading", 0.0)
    found = lint(
        str(path), adapter=adapter, parents=parents, weights=weights, files_only=files_only, select=select,
        ignore=ignore, base_model=base_model,
    )  # fmt: skip
    seen = None
    if forward and found.contract and found.contract.is_chat:
        # Imported late: it brings torch along, which linting files does without.
        from hermetiq import forward as gate

        seen = gate.forward(str(path), found.contract, adapter=adapter, tick=progress)
        found = gate.joined(found, seen, select=select, ignore=ignore)
    return Inspected(found.path, found.contract, found.findings, seen)
