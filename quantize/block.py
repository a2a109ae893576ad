"""One decoder block from statistics to codes: factorise once, fold once, then sweep for every recipe.

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
    factors: dict[Order, dict[Group, Factor]] = {
        order: {group: factorize(inputs[group.linears[0]], order) for group in GROUPS}
        for order in {_sweeping(recipe.order) for recipe in recipes.values()}
    }
    solved = {}
    for key, recipe in recipes.items():
        chosen = factors[_sweeping(recipe.order)]
        folded = fold(weights, {group: factor.sensitivity for group, factor in chosen.items()}, model)
        solved[key] = _solve(folded, chosen, inputs, recipe)
    return solved


def _sweeping(order: Order) -> Order:
    """Static and fresh groups are swept in the same order."""
    return "plain" if order == "plain" else "static"


def _solve(
    folded: Folded, factors: Mapping[Group, Factor], inputs: Mapping[str, Statistics], recipe: LinearRecipe
) -> SolvedBlock:
    linears: dict[str, QuantizedLinear] = {}
    errors: dict[str, float] = {}
    steps = []
    for group, factor in factors.items():
        parts = [folded.weights[name] for name in group.linears]
        rows = [len(part) for part in parts]
        joined = rounded(torch.cat(parts), factor.folded(folded.factors[group]), recipe)
        linears |= zip(group.linears, split(joined.linear, rows), strict=True)
        for name, part, losses in zip(group.linears, parts, torch.split(joined.losses, rows), strict=True):
            errors[name] = _share(losses, part / folded.factors[group], inputs[name].gram)
        if factor.step:
            steps.append(f"{', '.join(name.removesuffix('.weight') for name in group.linears)}: {factor.step}")
    others = {name: value for name, value in folded.weights.items() if name not in linears}
    return SolvedBlock(linears, others, errors, tuple(steps))


def _share(
    losses: Tensor,  # (out,)
    weight: Tensor,  # (out, in), as it multiplies the inputs that were seen
    gram: Tensor,  # (in, in)
) -> float:
    """The losses' share of tr(W H Wᵀ), H being the Gram matrix over its mean diagonal; none where nothing comes out."""
    energy = float(((weight @ gram) * weight).sum())
    return float(losses.sum() * gram.diagonal().mean()) / energy if energy > 0 else 0.0
