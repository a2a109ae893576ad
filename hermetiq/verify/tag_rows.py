"""The rows of the tags, before and after: the few rows out of tens of thousands that every turn goes through.

A damaged row of one rare word moves no mean; a tag's row opens or ends every turn. So each is compared by itself, in
the embedding and in the head, with what rounding to its stored type can do at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Final, Literal

from torch import Tensor

from hermetiq.chat.contract import Tag
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.checkpoint.shards import listed
from hermetiq.model import EMBEDDING, HEAD
from hermetiq.verification import Check, TagRow

from .judge import Findings, number

Matrix = Literal["embedding", "head"]
MATRICES: Final[tuple[Matrix, ...]] = ("embedding", "head")

LIMITS: Final[Mapping[str, float]] = {
    "F32": 2**-20,
    "F16": 2**-10,
    "BF16": 2**-8,
    "Q8_0": 0.01,
    "Q6_K": 0.03,
    **dict.fromkeys(("Q5_K", "Q5_1", "Q5_0"), 0.1),
    **dict.fromkeys(("Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS"), 0.2),
    "Q3_K": 0.3,
}
"""Largest error of a weight by stored type, over the largest |weight| of its row: half as much again as plain rounding
left at most in rows from normal to heavy-tailed."""
COARSEST: Final = 0.6
"""Where errors were weighed (an importance matrix, EXL2's solver) or two bits are left, a single weight may be far off.
A row of zeros is off by 1, and another token's by about as much or more."""
UNWEIGHED: Final = frozenset({"F32", "F16", "BF16", "Q8_0"})
"""Types that round each weight by itself, with an importance matrix, too."""


class TagRows:
    """The source's rows of its tags, read once for all artifacts."""

    def __init__(self, source: Checkpoint, tags: Sequence[Tag]) -> None:
        """Read them.

        Raises:
            Refusal: a matrix cannot be read.
        """
        # A token without a row (`vocab-overflow`) has none to lose.
        self._tags = tuple(tag for tag in tags if tag.id < source.model.rows)
        self._rows = {matrix: self._read(source, matrix) for matrix in MATRICES}

    def compare(self, artifact: Checkpoint, *, imatrix: bool) -> Findings:
        """Every row of an artifact that has as many rows as the source, and the check `tag-rows`.

        Args:
            imatrix: whether its blocks were chosen with an importance matrix.

        Raises:
            Refusal: a matrix cannot be read.
        """
        types = {matrix: artifact.tensors[_tensor(artifact, matrix)].dtype for matrix in MATRICES}
        rows = tuple(
            _compared(tag, matrix, types[matrix], _limit(types[matrix], imatrix=imatrix), before, after)
            for matrix, source in self._rows.items()
            for tag, before, after in zip(self._tags, source, self._read(artifact, matrix), strict=True)
        )
        damaged = [row for row in rows if not row.sound]
        reason = f"rounding does not explain {listed(map(_told, damaged))}" if damaged else ""
        return Findings((Check("tag-rows", not damaged, len(damaged), 0, reason),), tag_rows=rows)

    def _read(self, checkpoint: Checkpoint, matrix: Matrix) -> Tensor:
        """(tags, hidden), float64."""
        return checkpoint.load(_tensor(checkpoint, matrix))[[tag.id for tag in self._tags]].double()


def _tensor(checkpoint: Checkpoint, matrix: Matrix) -> str:
    return HEAD if matrix == "head" and not checkpoint.model.tied else EMBEDDING


def _limit(stored: str, *, imatrix: bool) -> float:
    return COARSEST if imatrix and stored not in UNWEIGHED else LIMITS.get(stored, COARSEST)


def _compared(
    tag: Tag,
    matrix: Matrix,
    stored: str,
    limit: float,
    before: Tensor,  # (hidden,)
    after: Tensor,  # (hidden,)
) -> TagRow:
    largest, difference = float(before.abs().max()), float((before - after).abs().max())
    return TagRow(
        text=tag.text,
        id=tag.id,
        matrix=matrix,
        type=stored,
        # Two rows of zeros are equal, and have no direction.
        cosine=number(float(before @ after / (before.norm() * after.norm()))),
        error=0.0 if difference == 0 else number(difference / largest if largest else inf),
        limit=limit,
    )


def _told(row: TagRow) -> str:
    off = "no number" if row.error is None else f"off by {row.error:.3g} of its largest weight"
    return f"{row.text} = {row.id} in the {row.matrix}, {row.type}: {off}, at most {row.limit:.3g}"
