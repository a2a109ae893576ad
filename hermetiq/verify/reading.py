"""What a model makes of rows of token ids: source and artifact are read by the same walk, so only weights differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from hermetiq.calibration import walk
from hermetiq.checkpoint.base import Checkpoint


@dataclass(frozen=True)
class Reading:
    """Final states of each row, (tokens, hidden), and the head that turns states into logits."""

    states: Sequence[Tensor]
    logits: Callable[[Tensor], Tensor]
    """(tokens, hidden) to (tokens, vocabulary)."""


def read_rows(
    checkpoint: Checkpoint, rows: Sequence[Sequence[int]], on_block: Callable[[int, int], None] | None = None
) -> Reading:
    """Read `rows` with the checkpoint's weights in float32, one decoder block in memory at a time.

    Besides that block, the head stays: rows x hidden x 4 bytes. `on_block` is told of each block and of how many.

    Raises:
        Refusal: a tensor cannot be read.
    """
    states = walk.final_hidden(checkpoint.config, checkpoint.load, rows, on_block=on_block)
    return Reading(states, walk.head(checkpoint.config, checkpoint.load))
