"""Rows for tokens that have none, and a start for the rows of tags that were never trained.

A token without a row gets the mean of all rows, which gives it the score of an average token: a row of zeros would
score 0 where trained tokens score far below, and be said at random. Tags are given a row only on request, and only
where `tag-untrained` finds theirs to hold no training, so a trained row is never written over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hermetiq.chat.contract import Tag
from hermetiq.chat.subject import Subject
from hermetiq.chat.weight_checks import UntrainedRow, untrained, untrained_tags
from hermetiq.checkpoint import Checkpoint, open_checkpoint
from hermetiq.errors import HermetiqError
from hermetiq.model import EMBEDDING, HEAD

_FORMS = "copy:TOKEN, mean or parent:PATH"
_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class InitTags:
    """Where the rows of untrained tags come from: another token, the mean of all rows, or a parent that has them."""

    kind: Literal["copy", "mean", "parent"]
    argument: str = ""
    """The token's text or id, or the parent's path."""

    PARENT: ClassVar[str] = "parent"

    @property
    def told(self) -> str:
        """What a manifest may say: everything but the path of a parent, which is nobody's business."""
        return f"{self.kind}:{self.argument}" if self.kind == "copy" else self.kind

    @classmethod
    def parse(cls, text: str) -> InitTags:
        """`copy:TOKEN`, `mean` or `parent:PATH`.

        Raises:
            HermetiqError: anything else.
        """
        kind, _, argument = text.partition(":")
        if kind == "mean" and not argument:
            return cls("mean")
        if kind in ("copy", "parent") and argument:
            return cls("copy" if kind == "copy" else "parent", argument)
        raise HermetiqError(f"unknown start for tags {text!r}", where="--init-tags", remedy=f"give {_FORMS}")


@dataclass(frozen=True)
class NewRow:
    """A row for one id, with what it is in words."""

    row: Tensor  # (hidden,)
    old: str
    new: str


NewRows = Mapping[str, Mapping[int, NewRow]]
"""By tensor and id."""


def missing_rows(checkpoint: Checkpoint) -> NewRows:
    """A row for each token behind the last row, in the embedding and in a head that is stored."""
    tokens = checkpoint.tokenizer.vocabulary.tokens
    rows = checkpoint.tensors[EMBEDDING].shape[0]
    if len(tokens) <= rows:
        return {}
    return {name: _mean_rows(checkpoint, name, range(rows, len(tokens))) for name in _stored(checkpoint)}


def started_rows(checkpoint: Checkpoint, subject: Subject, init: InitTags) -> NewRows:
    """Rows for the tags that `tag-untrained` finds in `checkpoint`, of which `subject` is what was seen.

    A row that already holds what it is to be given is left out.

    Raises:
        HermetiqError: the donor or the parent cannot give the rows.
    """
    untrained_rows = tuple(untrained_tags(subject))
    if not untrained_rows:
        return {}
    found: dict[str, dict[int, NewRow]] = {}
    for wanted, row, origin in _SOURCES[init.kind](checkpoint, untrained_rows, init.argument):
        if not row.isfinite().all() or not row.any():
            raise HermetiqError(f"{origin} holds NaN or only zeros", where="--init-tags", remedy="name another start")
        stored = checkpoint.load(wanted.tensor)[wanted.tag.id]
        if not torch.equal(stored, row.to(stored.dtype)):
            new = NewRow(row, wanted.found, f"{origin}, for {wanted.tag.text}")
            found.setdefault(wanted.tensor, {})[wanted.tag.id] = new
    return found


_Started = Iterator[tuple[UntrainedRow, Tensor, str]]
"""The row to fill, its values and where they come from."""


def _from_token(checkpoint: Checkpoint, wanted: tuple[UntrainedRow, ...], donor: str) -> _Started:
    index = int(donor) if donor.isdecimal() else checkpoint.tokenizer.id_of(donor)
    if index is None or index >= checkpoint.tensors[EMBEDDING].shape[0]:
        raise HermetiqError(f"no token {donor!r} with a row", where="--init-tags", remedy="name a token or its id")
    for each in wanted:
        if each.tag.id != index:
            yield each, checkpoint.load(each.tensor)[index], f"a copy of row {index}"


def _from_mean(checkpoint: Checkpoint, wanted: tuple[UntrainedRow, ...], _: str) -> _Started:
    # Without the rows to fill, so that filling them does not move the mean and a second repair finds the same.
    ids = {each.tag.id for each in wanted}
    for each in wanted:
        yield each, _mean(checkpoint.load(each.tensor), ids), "the mean of the other rows"


def _from_parent(checkpoint: Checkpoint, wanted: tuple[UntrainedRow, ...], path: str) -> _Started:
    parent = open_checkpoint(path)
    if parent.model.hidden != checkpoint.model.hidden:
        raise HermetiqError(
            f"rows of {parent.model.hidden} numbers, for a model of {checkpoint.model.hidden}",
            where=path,
            remedy="name a parent of the same architecture",
        )
    for each in wanted:
        name = each.tensor if each.tensor in parent.tensors else EMBEDDING
        index = parent.tokenizer.id_of(each.tag.text)
        if index is None or index >= parent.tensors[name].shape[0]:
            raise HermetiqError(f"no token {each.tag.text}", where=path, remedy="name a parent that has the tag")
        if poor := next(untrained(parent, name, [Tag(each.tag.text, index)]), None):
            raise HermetiqError(
                f"{each.tag.text} is untrained there too: {poor.found}", where=path, remedy="name another parent"
            )
        yield each, parent.load(name)[index], f"row {index} of {parent.provenance.name}"


_SOURCES = {"copy": _from_token, "mean": _from_mean, "parent": _from_parent}


def _mean_rows(checkpoint: Checkpoint, name: str, ids: range) -> dict[int, NewRow]:
    mean = _mean(checkpoint.load(name), frozenset())
    texts = checkpoint.tokenizer.vocabulary.tokens
    return {i: NewRow(mean, "no row", f"the mean of all rows, for {texts[i].text}") for i in ids}


def _mean(
    weight: Tensor,  # (rows, hidden)
    without: set[int] | frozenset[int],
) -> Tensor:  # (hidden,), in float64
    total = torch.zeros(weight.shape[1], dtype=torch.float64)
    for part in torch.split(weight, _CHUNK_ROWS):
        total += part.sum(0, dtype=torch.float64)
    for index in without:
        total -= weight[index].double()
    return total / (len(weight) - len(without))


def _stored(checkpoint: Checkpoint) -> list[str]:
    return [name for name in (EMBEDDING, HEAD) if name in checkpoint.tensors]
