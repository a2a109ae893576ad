"""One decoder block from statistics to codes: factorise once, fold once, then sweep and polish for every recipe.

What is shared by all formats is done once. A recipe costs its own scale search and sweep, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from hermetiq.calibration.statistics import Statistics
from hermetiq.lanes import lanes
from hermetiq.model import ModelConfig, block_prefix

from . import exl2, gptq
from .factor import Factor, factorize
from .fold import GROUPS, Folded, Group, fold
from .gptq import Rounded
from .ladder import Rung
from .measure import disturbed, measure
from .polish import polish
from .result import MixedLinear, QuantizedLinear
from .spec import LinearRecipe, Order

if TYPE_CHECKING:
    from hermetiq.calibration.observe import Block

Rungs = Mapping[str, Rung]
"""What EXL2 makes of a block: the rung of each linear, by the name of its weight."""


@dataclass(frozen=True)
class SolvedBlock:
    """What one recipe makes of a block. Names are those below the block."""

    linears: Mapping[str, QuantizedLinear | MixedLinear]
    """By the name of the weight."""
    others: Mapping[str, Tensor]
    """Every other tensor of the block, float32, with the folds in it."""
    errors: Mapping[str, float]
    """By weight: energy of the output's error over energy of the output, on the calibration inputs with damping."""
    steps: tuple[str, ...]
    """What the factorisations had to do beyond the ordinary, each with the layers it concerns."""


@dataclass(frozen=True)
class MeasuredBlock:
    """What each rung of a ladder would cost. Names are those below the block.

    Energies are tr(E H Eᵀ) of a weight's error E, H being the input's Gram matrix over its mean diagonal, all as they
    are before the folds.
    """

    errors: Mapping[str, tuple[float, ...]]
    """By weight: the energy that each rung leaves, with the damping in it."""
    disturbances: Mapping[str, float]
    """By weight: the energy of what `disturbed` does to it."""


class BlockSolver:
    """A block with what calibration saw in it, ready for any recipe.

    Args:
        weights: every tensor of the block by its name below it, float32.
        inputs: by the name of each linear's weight.
    """

    def __init__(self, weights: Mapping[str, Tensor], inputs: Mapping[str, Statistics], model: ModelConfig) -> None:
        self._weights, self._inputs, self._model = weights, inputs, model
        self._prepared: dict[Order, _Prepared] = {}

    @classmethod
    def of(cls, block: Block, model: ModelConfig) -> Self:
        """For a block as the pass of calibration shows it."""
        prefix = block_prefix(block.index)
        return cls(
            {name.removeprefix(prefix): weight for name, weight in block.weights.items()},
            {name.removeprefix(prefix): seen for name, seen in block.inputs.items()},
            model,
        )

    def solve(self, recipe: LinearRecipe | Rungs) -> SolvedBlock:
        """Quantize the block.

        Raises:
            HermetiqError: a weight is beyond what float16 scales can express.
        """
        prepared = self._ready(recipe.order if isinstance(recipe, LinearRecipe) else "static")
        linears: dict[str, QuantizedLinear | MixedLinear] = {}
        errors: dict[str, float] = {}
        with lanes(prepared.device) as side:
            rounded = side.run([partial(_rounded, prepared, recipe, group) for group in GROUPS])
        for made in rounded:
            for name, result in made.items():
                linears[name] = result.linear
                # A share of nothing is none.
                energy = prepared.energies[name]
                errors[name] = float(result.losses.sum()) / energy if energy > 0 else 0.0
        others = {name: value for name, value in prepared.folded.weights.items() if name not in linears}
        return SolvedBlock(linears, others, errors, prepared.steps)

    def measure(self, ladder: Sequence[Rung]) -> MeasuredBlock:
        """What each rung would cost each linear.

        Raises:
            HermetiqError: a weight is beyond what a float16 scale can express.
        """
        prepared = self._ready("static")
        errors: dict[str, tuple[float, ...]] = {}
        for group, factor in prepared.factors.items():
            parts = prepared.parts(group)
            order = exl2.stored_order(torch.cat(parts), factor)
            rows = [
                prepared.folded.rows.get(name, part.new_ones(len(part)))
                for name, part in zip(group.linears, parts, strict=True)
            ]
            counts = [each.square() for each in rows]
            errors |= zip(group.linears, measure(parts, factor, order, ladder, counts), strict=True)
        disturbances = {
            name: _energy(disturbed(self._weights[name]) - self._weights[name], given.gram)
            for name, given in self._inputs.items()
        }
        return MeasuredBlock(errors, disturbances)

    def _ready(self, order: Order) -> _Prepared:
        """Static and fresh groups are swept in the same order."""
        sweeping: Order = "plain" if order == "plain" else "static"
        if sweeping not in self._prepared:
            self._prepared[sweeping] = _prepare(self._weights, self._inputs, self._model, sweeping)
        return self._prepared[sweeping]


@dataclass(frozen=True)
class _Prepared:
    """A block ready to be rounded in one order, by any recipe."""

    folded: Folded
    factors: Mapping[Group, Factor]
    """Of the inputs after the fold."""
    hessians: Mapping[Group, Tensor | None]
    """The same, not factorised; None where only rounding to nearest is left."""
    energies: Mapping[str, float]
    """By weight: tr(W H Wᵀ), H being the Gram matrix over its mean diagonal."""

    @property
    def steps(self) -> tuple[str, ...]:
        """What the factorisations had to do beyond the ordinary, each with the layers it concerns."""
        return tuple(
            f"{', '.join(name.removesuffix('.weight') for name in group.linears)}: {factor.step}"
            for group, factor in self.factors.items()
            if factor.step
        )

    @property
    def device(self) -> torch.device:
        return next(iter(self.folded.weights.values())).device

    def parts(self, group: Group) -> list[Tensor]:
        """The weights that share the group's input."""
        return [self.folded.weights[name] for name in group.linears]


def _prepare(
    weights: Mapping[str, Tensor], inputs: Mapping[str, Statistics], model: ModelConfig, order: Order
) -> _Prepared:
    plain = {group: factorize(inputs[group.linears[0]], order) for group in GROUPS}
    folded = fold(weights, {group: factor.sensitivity for group, factor in plain.items()}, model)
    hessians = {}
    for group, scales in folded.factors.items():
        hessian = plain[group].hessian(inputs[group.linears[0]].gram)
        hessians[group] = None if hessian is None else hessian / scales[:, None] / scales
    factors = {group: factor.folded(folded.factors[group]) for group, factor in plain.items()}
    energies = {
        name: _energy(folded.weights[name] / scales, inputs[name].gram)
        for group, scales in folded.factors.items()
        for name in group.linears
    }
    return _Prepared(folded, factors, hessians, energies)


def _rounded(
    prepared: _Prepared, recipe: LinearRecipe | Rungs, group: Group
) -> Mapping[str, Rounded[QuantizedLinear] | Rounded[MixedLinear]]:
    """The linears of a group, by the name of the weight."""
    return _mixed(prepared, group, recipe) if isinstance(recipe, Mapping) else _uniform(prepared, group, recipe)


def _uniform(prepared: _Prepared, group: Group, recipe: LinearRecipe) -> dict[str, Rounded[QuantizedLinear]]:
    """The linears of a group on grids of one width, joined by their rows."""
    parts, hessian = prepared.parts(group), prepared.hessians[group]
    joined = torch.cat(parts)
    result = gptq.rounded(joined, prepared.factors[group], recipe)
    if hessian is not None:
        result = polish(joined, result, hessian)
    rows = [len(part) for part in parts]
    return {
        name: Rounded(linear, losses)
        for name, linear, losses in zip(
            group.linears, gptq.split(result.linear, rows), torch.split(result.losses, rows), strict=True
        )
    }


def _mixed(prepared: _Prepared, group: Group, rungs: Rungs) -> dict[str, Rounded[MixedLinear]]:
    """The linears of a group, each in the widths of its rung."""
    weights, factor = prepared.parts(group), prepared.factors[group]
    order = exl2.stored_order(torch.cat(weights), factor)
    parts = [
        exl2.Part(weight, rungs[name].groups(len(order))) for name, weight in zip(group.linears, weights, strict=True)
    ]
    return dict(zip(group.linears, exl2.rounded(parts, factor, order, prepared.hessians[group]), strict=True))


def solve_head(
    weight: Tensor,  # (vocabulary, hidden) float32
    seen: Statistics,
    rung: Rung,
) -> Rounded[MixedLinear]:
    """The output matrix, which stands behind no block and is not folded.

    Raises:
        HermetiqError: a weight is beyond what a float16 scale can express.
    """
    factor = factorize(seen, "static")
    part = exl2.Part(weight, rung.groups(weight.shape[1]))
    (result,) = exl2.rounded([part], factor, exl2.stored_order(weight, factor), factor.hessian(seen.gram))
    return result


def _energy(
    weight: Tensor,  # (out, in), as it multiplies the inputs that were seen
    gram: Tensor,  # (in, in)
) -> float:
    """tr(W H Wᵀ), H being the Gram matrix over its mean diagonal; zero where nothing comes out."""
    energy = float(((weight @ gram) * weight).sum())
    return energy / float(gram.diagonal().mean()) if energy > 0 else 0.0
