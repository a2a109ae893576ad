"""How far an error in one linear moves what the model says, for all linears within the one pass.

Bits are best spent where an error moves the logits, and the error of a layer's own output does not tell where that is:
some blocks pass on all that reaches them, others drown it. So a few token rows travel through the model once more for
each linear, as the model takes them when that linear's weight alone is disturbed. Behind the head, the KL divergence
from the undisturbed rows is what the disturbance does.

All of this is float32, whatever the walk's own layers are computed in. In bfloat16 every copy is rounded in its own
way: on SmolLM2 that alone is up to 5e-4 nats, half of what some linears do at three bits. float32 leaves 4e-8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil, isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hermetiq.errors import HermetiqError
from hermetiq.model import ModelConfig, block_prefix

from .walk import Walk

Disturb = Callable[[str, Tensor], Tensor]
"""Makes of a linear's weight, (out, in) float32, by its name the disturbed one of the same shape."""

PROBE_TOKENS = 128
"""Of all probe rows together. On SmolLM2 they add a fifth to what the walk takes for 59,000 tokens."""
_ROW_TOKENS = 64
"""Of one probe row: enough of a text for attention to matter, few enough for several texts."""
_BATCH_TOKENS = 1024
"""Tokens of copies that go through a block together."""
_POINTS = 512
"""Tokens of the vocabulary that count each for itself, and strata that the others are drawn from."""
_STORED = torch.bfloat16
"""Of the difference between a copy and the clean rows: rounding is in proportion to the disturbance itself."""
_LINEARS = 7
"""Linears of a block."""


def choose_probe_rows(rows: Sequence[Sequence[int]], tokens: int = PROBE_TOKENS) -> tuple[tuple[int, ...], ...]:
    """The beginnings of some rows that lie evenly among all.

    Args:
        rows: token ids.
        tokens: at most so many come out; fewer where there are few rows, or short ones.
    """
    asked = ceil(tokens / _ROW_TOKENS)
    count = min(asked, len(rows))
    return tuple(tuple(rows[number * len(rows) // count][: tokens // asked]) for number in range(count))


def probe_bytes(model: ModelConfig, tokens: int = PROBE_TOKENS) -> int:
    """Bytes that the copies of so many tokens take at their most, when all linears have theirs."""
    return _STORED.itemsize * model.layers * _LINEARS * tokens * model.hidden


class Probes:
    """The probe rows on their way through the blocks: undisturbed, and once for each linear so far."""

    def __init__(self, walk: Walk, rows: Sequence[Sequence[int]], disturb: Disturb) -> None:
        self._walk, self._disturb = walk, disturb
        self._lengths = [len(row) for row in rows]
        (self._clean,) = walk.embed(rows, [range(len(rows))])  # (rows, longest row, hidden)
        self._moved: dict[str, Tensor] = {}
        """By the name of the disturbed weight: the copy less the undisturbed rows, of their shape."""

    def advance(self, index: int, block: nn.Module) -> None:
        """Take everything through block `index`; each of its linears gets its copy."""
        after = self._walk.forward(index, block, self._clean)
        for names in self._batches():
            states = torch.cat([self._clean + self._moved[name] for name in names])
            for name, state in zip(names, self._walk.forward(index, block, states).chunk(len(names)), strict=True):
                self._moved[name] = (state - after).to(_STORED)
        for name, state in self._born(index, block):
            self._moved[name] = (state - after).to(_STORED)
        self._clean = after

    @torch.no_grad()
    def divergences(
        self,
        head: Tensor,  # (vocabulary, hidden)
    ) -> dict[str, float]:
        """Mean KL(undisturbed || disturbed) over all probe tokens, nats, by the name of the disturbed weight.

        Raises:
            HermetiqError: a disturbance leads to NaN or infinity.
        """
        if not self._moved:
            return {}
        sums = torch.zeros(len(self._moved), dtype=torch.float64, device=head.device)
        for row, length in enumerate(self._lengths):
            clean = self._final(self._clean[row, :length])
            points, weights = _points((clean @ head.T).softmax(-1))
            for token in range(length):
                copies = torch.stack([self._clean[row, token] + moved[row, token] for moved in self._moved.values()])
                shifts = (self._final(copies) - clean[token]) @ head[points[token]].T
                sums += _divergence(shifts, weights[token])
        means = dict(zip(self._moved, (sums / sum(self._lengths)).tolist(), strict=True))
        for name, mean in means.items():
            if not isfinite(mean):
                raise HermetiqError(f"logits of {mean} when it is disturbed", where=name)
        return means

    def _final(self, states: Tensor) -> Tensor:
        (final,) = self._walk.normalised([states])
        return final

    def _born(self, index: int, block: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """What the block makes of the undisturbed rows with one linear's weight disturbed, for each."""
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                full = f"{block_prefix(index)}{name}.weight"
                weight = self._disturb(full, module.weight.detach().float()).to(module.weight.dtype)
                yield full, self._walk.forward(index, _replacing(block, f"{name}.weight", weight), self._clean)

    def _batches(self) -> Iterator[list[str]]:
        """Names of copies that go through a block together."""
        names = list(self._moved)
        size = max(1, _BATCH_TOKENS // self._clean[..., 0].numel())
        for start in range(0, len(names), size):
            yield names[start : start + size]


def _replacing(block: nn.Module, name: str, weight: Tensor) -> Callable[..., Tensor]:
    """The block with another weight; its own stays in place."""

    def run(state: Tensor, **arguments: Any) -> Tensor:
        output: Tensor = functional_call(block, {name: weight}, (state,), arguments)
        return output

    return run


def _points(
    probabilities: Tensor,  # (tokens, vocabulary)
) -> tuple[Tensor, Tensor]:  # each (tokens, points)
    """Some tokens of the vocabulary that stand for all, and the weight of each.

    Logits of the whole vocabulary would be half of the work, and on SmolLM2 move the figures by 1 %. The likeliest
    count with their own probability; the rest in falling order is cut into strata of equal probability, of which the
    token in the middle stands for its stratum.
    """
    falling, order = probabilities.sort(descending=True, stable=True)
    likeliest = falling[:, :_POINTS]
    rest = falling[:, _POINTS:].cumsum(-1)
    if not rest.shape[-1]:
        return order, likeliest
    middles = (torch.arange(_POINTS, device=rest.device) + 0.5) / _POINTS * rest[:, -1:]
    drawn = torch.searchsorted(rest, middles) + _POINTS
    points = torch.cat([order[:, :_POINTS], order.gather(-1, drawn)], -1)
    return points, torch.cat([likeliest, (rest[:, -1:] / _POINTS).expand(-1, _POINTS)], -1)


def _divergence(
    shifts: Tensor,  # (copies, points): by how much each logit moved
    weights: Tensor,  # (points,): they add up to one
) -> Tensor:  # (copies,)
    """KL of the distribution from the one whose logits are shifted, in nats: log E[exp(d)] for d = shift - E[shift]."""
    centred = shifts - (shifts @ weights)[:, None]
    return (centred + weights.log()).logsumexp(-1)
