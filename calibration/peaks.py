"""How large a model's activations get, heard on a walk that reads rows anyway: no statistics, and no second pass.

A model that is broken, or that float16 cannot hold, shows it on any chat. Calibration finds that out in its own pass;
this is for whoever wants to know before one (`activations` says what the sizes mean).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hermetiq.model import block_prefix

from .activations import refuse_broken
from .sums import largest
from .walk import Load, Walk, batched


def final_hidden_and_peaks(
    config: Mapping[str, Any],
    load: Load,
    rows: Sequence[Sequence[int]],
    *,
    on_block: Callable[[int, int], None] | None = None,
) -> tuple[list[Tensor], dict[str, float]]:
    """`walk.final_hidden` in float32, and the largest |activation| that each module put out, in the order they ran.

    Raises:
        HermetiqError: a `model_type` whose layers are not known here.
        Refusal: `hessian-nan`, with the first module that put out NaN or infinity.
    """
    walk = Walk(config, load, torch.device("cpu"), torch.float32)
    batches = batched(rows)
    states, heard = walk.embed(rows, batches), _Heard()
    lengths = [[len(rows[row]) for row in batch] for batch in batches]
    for state, heard.lengths in zip(states, lengths, strict=True):
        heard.output("model.embed_tokens", state)
    refuse_broken(heard.peaks)
    for index, block in enumerate(walk.blocks()):
        with heard.listening(block, block_prefix(index)):
            for number, heard.lengths in enumerate(lengths):
                states[number] = walk.forward(index, block, states[number])
        refuse_broken(heard.peaks)
        if on_block is not None:
            on_block(index + 1, walk.depth)
    hidden: dict[int, Tensor] = {}
    for batch, state, heard.lengths in zip(batches, walk.normalised(states), lengths, strict=True):
        heard.output("model.norm", state)
        hidden |= {row: state[place, : len(rows[row])] for place, row in enumerate(batch)}
    refuse_broken(heard.peaks)
    return [hidden[row] for row in range(len(rows))], heard.peaks


class _Heard:
    """Keeps the largest |value| of every output, padding left out."""

    def __init__(self) -> None:
        self.peaks: dict[str, float] = {}
        self.lengths: Sequence[int] = ()
        """Tokens of each row of the batch that comes next."""

    @contextmanager
    def listening(self, block: nn.Module, prefix: str) -> Iterator[None]:
        """Hear every module of the block while inside."""
        hooks = [
            module.register_forward_hook(self._hook((prefix + name).rstrip(".")))
            for name, module in block.named_modules()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def output(
        self,
        module: str,
        value: Tensor,  # (rows, tokens, …)
    ) -> None:
        peaks = [largest(row[:length]) for row, length in zip(value, self.lengths, strict=True)]
        # Not `max` of Python, which may lose a NaN.
        peak = torch.stack([*peaks, torch.tensor(self.peaks.get(module, 0.0))]).max()
        self.peaks[module] = float(peak)

    def _hook(self, module: str) -> Callable[[nn.Module, Any, Any], None]:
        # Attention returns its weights beside its output.
        return lambda _, __, output: self.output(module, output[0] if isinstance(output, tuple) else output)
