"""The rules that read tensors; what they need of each is taken in one look (`weight_scan.py`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hermetiq.chat.contract import Tag
from hermetiq.chat.subject import Subject
from hermetiq.chat.weight_scan import UsualRow, WeightScan
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.checkpoint.finite import f16_finding, nan_finding
from hermetiq.errors import Finding, Refusal
from hermetiq.model import EMBEDDING, HEAD
from hermetiq.rules import finding

_CHUNK_ROWS = 4096
_FIRST_ROWS = 64
_ZERO = 1e-3
"""Of the mean norm of all rows: a row below this was never trained. The smallest row of SmolLM2 has .56 of it."""
_MEAN = 0.05
"""Of the mean distance from the mean row: rows that a resize puts at the mean lie below. SmolLM2's nearest has .70."""


def weight_nan(subject: Subject) -> Iterator[Finding]:
    """Every tensor that holds NaN or infinity, or that cannot be read."""
    for name, seen in subject.scan.every():
        if isinstance(seen, Refusal):
            yield from seen.findings
        elif wrong := nan_finding(name, seen.extent, subject.checkpoint.tensors[name].file):
            yield wrong


def f16_overflow(subject: Subject) -> Iterator[Finding]:
    """Every tensor with values or rows that float16 cannot hold."""
    for name, seen in subject.scan.every():
        if not isinstance(seen, Refusal) and (
            wrong := f16_finding(name, seen.extent, subject.checkpoint.tensors[name].file)
        ):
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
    if _equal(head, embedding):
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
            inside = [tag for tag in tags if tag.id < checkpoint.tensors[name].shape[0]]
            yield from _untrained(subject.scan, checkpoint, name, inside)


def untrained(checkpoint: Checkpoint, name: str, tags: list[Tag]) -> Iterator[UntrainedRow]:
    """Those of `tags` whose row in the named tensor carries no training."""
    yield from _untrained(WeightScan(checkpoint), checkpoint, name, tags)


def _untrained(scan: WeightScan, checkpoint: Checkpoint, name: str, tags: list[Tag]) -> Iterator[UntrainedRow]:
    usual = scan.look(name).usual
    if usual is None or not math.isfinite(usual.norm):
        return  # No row is usual here; weight-nan says why.
    weight = checkpoint.load(name)
    for tag in tags:
        row = weight[tag.id].float()
        if row.norm() < _ZERO * usual.norm:
            yield UntrainedRow(name, tag, f"row {tag.id} is zero")
        elif (row - usual.mean).norm() < _MEAN * usual.spread:
            yield UntrainedRow(name, tag, f"row {tag.id} is the mean of all rows")
        elif copies := _copies(weight, usual, tag.id):
            more = f" and {len(copies) - 1} more" if copies[1:] else ""
            yield UntrainedRow(name, tag, f"row {tag.id} equals row {copies[0]}{more}")


def _copies(
    weight: Tensor,  # (rows, hidden)
    usual: UsualRow,
    row: int,
) -> list[int]:
    """Other rows that equal this one in every value."""
    alike = (usual.first_column == usual.first_column[row]).nonzero().flatten().tolist()
    return [other for other in alike if other != row and torch.equal(weight[other], weight[row])]


def _differing_rows(left: Tensor, right: Tensor) -> int:
    parts = zip(torch.split(left, _CHUNK_ROWS), torch.split(right, _CHUNK_ROWS), strict=True)
    return sum(int((mine != theirs).any(dim=1).sum()) for mine, theirs in parts)


def _equal(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors hold the same values; of most pairs only the first rows are read."""
    if left.shape != right.shape:
        return False
    parts = zip(torch.split(left, _FIRST_ROWS), torch.split(right, _FIRST_ROWS), strict=True)
    return all(bool((mine == theirs).all()) for mine, theirs in parts)
