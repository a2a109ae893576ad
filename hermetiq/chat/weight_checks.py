"""The rules that read tensors: one tensor at a time, so that a 7B model needs no more memory than its largest one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hermetiq.chat.contract import Tag
from hermetiq.chat.subject import Subject
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.checkpoint.finite import check_finite
from hermetiq.errors import Finding, Refusal
from hermetiq.model import EMBEDDING, HEAD
from hermetiq.rules import finding

_CHUNK_ROWS = 4096
_ZERO = 1e-3
"""Of the mean norm of all rows: a row below this was never trained. The smallest row of SmolLM2 has .56 of it."""
_MEAN = 0.05
"""Of the mean distance from the mean row: rows that a resize puts at the mean lie below. SmolLM2's nearest has .70."""


def weight_nan(subject: Subject) -> Iterator[Finding]:
    """Every tensor that holds NaN or infinity."""
    checkpoint = subject.checkpoint
    for name, info in checkpoint.tensors.items():
        try:
            wrong = check_finite(name, checkpoint.load(name), info.file)
        except Refusal as refusal:
            yield from refusal.findings
        else:
            if wrong is not None:
                yield wrong


def tie_conflict(subject: Subject) -> Iterator[Finding]:
    """The head is said to be the embedding, and the stored tensors differ."""
    checkpoint = subject.checkpoint
    if not checkpoint.model.tied or HEAD not in checkpoint.tensors:
        return
    head, embedding = checkpoint.load(HEAD), checkpoint.load(EMBEDDING)
    if head.shape != embedding.shape:
        found = f"a head of shape {tuple(head.shape)} beside an embedding of shape {tuple(embedding.shape)}"
    elif rows := _differing_rows(head, embedding):
        found = f"true, and {rows} of {len(head)} rows of the head differ from the embedding"
    else:
        return
    yield finding("tie-conflict", file="config.json", field="tie_word_embeddings", found=found, expected="false")


def head_tie(subject: Subject) -> Iterator[Finding]:
    """A head that is the embedding once more; a head that is missing was found on opening."""
    checkpoint = subject.checkpoint
    if HEAD not in checkpoint.tensors:
        return
    head, embedding = checkpoint.load(HEAD), checkpoint.load(EMBEDDING)
    if head.shape == embedding.shape and not _differing_rows(head, embedding):
        yield finding(
            "head-tie",
            file=checkpoint.tensors[HEAD].file,
            field=HEAD,
            found=f"a head equal to the embedding, and tie_word_embeddings {str(checkpoint.model.tied).lower()}",
            expected="tie_word_embeddings true and no head",
            severity="info",
            repair="Nothing to repair, unless a runtime stumbles: then remove the head and leave the flag true.",
        )


def tag_untrained(subject: Subject) -> Iterator[Finding]:
    """The rows of `untrained_tags`."""
    for row in untrained_tags(subject):
        yield finding(
            "tag-untrained",
            file=subject.checkpoint.tensors[row.tensor].file,
            field=row.tensor,
            found=f"{row.tag.text}: {row.found}",
            expected="a row of its own",
        )


@dataclass(frozen=True)
class UntrainedRow:
    """A row of `tensor` that carries no training, and what it holds in its place."""

    tensor: str
    tag: Tag
    found: str


def untrained_tags(subject: Subject) -> Iterator[UntrainedRow]:
    """Template tags whose row in the embedding, or for the terminator in the head, carries no training.

    Only the terminator is judged in the head: nothing else has to be said by the model, and a loss that leaves
    prompts out never trains the head rows of the other tags.
    """
    contract, checkpoint = subject.contract, subject.checkpoint
    if contract is None or subject.probe is None:
        return
    printed = [tag for tag in contract.tags if any(tag.text in text for text in subject.probe.renderings)]
    closing = [tag for tag in contract.tags if tag.id == contract.terminator_id]
    for name, tags in ((EMBEDDING, printed), (HEAD, closing)):
        if name in checkpoint.tensors:
            yield from untrained(checkpoint, name, [tag for tag in tags if tag.id < checkpoint.tensors[name].shape[0]])


def untrained(checkpoint: Checkpoint, name: str, tags: list[Tag]) -> Iterator[UntrainedRow]:
    """Those of `tags` whose row in the named tensor carries no training."""
    weight = checkpoint.load(name)
    usual = _usual_row(weight)
    if not math.isfinite(usual.norm):
        return  # No row is usual here; weight-nan says why.
    for tag in tags:
        row = weight[tag.id].float()
        if row.norm() < _ZERO * usual.norm:
            yield UntrainedRow(name, tag, f"row {tag.id} is zero")
        elif (row - usual.mean).norm() < _MEAN * usual.spread:
            yield UntrainedRow(name, tag, f"row {tag.id} is the mean of all rows")
        elif copies := _copies(weight, tag.id):
            more = f" and {len(copies) - 1} more" if copies[1:] else ""
            yield UntrainedRow(name, tag, f"row {tag.id} equals row {copies[0]}{more}")


@dataclass(frozen=True)
class _UsualRow:
    mean: Tensor  # (hidden,)
    norm: float
    """Mean norm of a row."""
    spread: float
    """Mean distance of a row from the mean row."""


def _usual_row(
    weight: Tensor,  # (rows, hidden)
) -> _UsualRow:
    rows = len(weight)
    mean = torch.stack([part.sum(0) for part in _chunks(weight)]).sum(0) / rows
    norm = sum(part.norm(dim=1).sum().item() for part in _chunks(weight)) / rows
    spread = sum((part - mean).norm(dim=1).sum().item() for part in _chunks(weight)) / rows
    return _UsualRow(mean, norm, spread)


def _chunks(weight: Tensor) -> Iterator[Tensor]:
    """The rows in float32, a few at a time."""
    return (part.float() for part in torch.split(weight, _CHUNK_ROWS))


def _copies(weight: Tensor, row: int) -> list[int]:
    """Other rows that equal this one in every value."""
    first_column = (weight[:, 0] == weight[row, 0]).nonzero().flatten().tolist()
    return [other for other in first_column if other != row and torch.equal(weight[other], weight[row])]


def _differing_rows(left: Tensor, right: Tensor) -> int:
    parts = zip(torch.split(left, _CHUNK_ROWS), torch.split(right, _CHUNK_ROWS), strict=True)
    return sum(int((mine != theirs).any(dim=1).sum()) for mine, theirs in parts)
