"""One decoder block from statistics to codes: factorise once, fold once, then sweep and polish for every recipe.

What is shared by all formats is done once. A recipe costs its own scale search and sweep, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hermetiq.calibration.statistics import Statistics
from hermetiq.model import ModelConfig

from .factor import Factor, factorize
from .fold import GROUPS, Folded, Group, fold
from .gptq import rounded, split
from .polish import polish
from .result import QuantizedLinear
from .spec import LinearRecipe, Order


@dataclass(frozen=True)
class SolvedBlock:
    """What one recipe makes of a block. Names are those below the block."""

    linears: Mapping[str, QuantizedLinear]
    """By the name of the weight."""
    others: Mapping[str, Tensor]
    """Every other tensor of the block, float32, with the folds in it."""
    errors: Mapping[str, float]
    """By weight: energy of the output's error over energy of the output, on the calibration inputs with damping."""
    steps: tuple[str, ...]
    """What the factorisations had to do beyond the ordinary, each with the layers it concerns."""


def solve(
    weights: Mapping[str, Tensor],
    inputs: Mapping[str, Statistics],
    model: ModelConfig,
    recipes: Mapping[str, LinearRecipe],
) -> dict[str, SolvedBlock]:
    """Quantize a block by every recipe, from the same statistics.

    Args:
        weights: every tensor of the block by its name below it, float32.
        inputs: by the name of each linear's weight.
        recipes: by any key; the result has the same.

    Raises:
        HermetiqError: a weight is beyond what a float16 scale can express.
    """
    prepared = {
        order: _prepare(weights, inputs, model, order) for order in {_sweeping(item.order) for item in recipes.values()}
    }
    return {key: _solve(prepared[_sweeping(recipe.order)], recipe) for key, recipe in recipes.items()}


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


def _sweeping(order: Order) -> Order:
    """Static and fresh groups are swept in the same order."""
    return "plain" if order == "plain" else "static"


def _solve(prepared: _Prepared, recipe: LinearRecipe) -> SolvedBlock:
    folded = prepared.folded
    linears: dict[str, QuantizedLinear] = {}
    errors: dict[str, float] = {}
    steps = []
    for group, factor in prepared.factors.items():
        parts = [folded.weights[name] for name in group.linears]
        rows, joined = [len(part) for part in parts], torch.cat(parts)
        result, hessian = rounded(joined, factor, recipe), prepared.hessians[group]
        if hessian is not None:
            result = polish(joined, result, hessian)
        linears |= zip(group.linears, split(result.linear, rows), strict=True)
        for name, losses in zip(group.linears, torch.split(result.losses, rows), strict=True):
            # A share of nothing is none.
            errors[name] = float(losses.sum()) / prepared.energies[name] if prepared.energies[name] > 0 else 0.0
        if factor.step:
            steps.append(f"{', '.join(name.removesuffix('.weight') for name in group.linears)}: {factor.step}")
    others = {name: value for name, value in folded.weights.items() if name not in linears}
    return SolvedBlock(linears, others, errors, tuple(steps))


def _energy(
    weight: Tensor,  # (out, in), as it multiplies the inputs that were seen
    gram: Tensor,  # (in, in)
) -> float:
    """tr(W H Wᵀ), H being the Gram matrix over its mean diagonal; zero where nothing comes out."""
    energy = float(((weight @ gram) * weight).sum())
    return energy / float(gram.diagonal().mean()) if energy > 0 else 0.0
