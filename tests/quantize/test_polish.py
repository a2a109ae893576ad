"""Polished codes against trying every code, and what a pass may and may not do."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from hermetiq.quantize.factor import Factor, factorize
from hermetiq.quantize.gptq import Rounded, rounded
from hermetiq.quantize.polish import polish
from hermetiq.quantize.spec import LinearRecipe, Order
from tests.oracles import polish as oracle
from tests.oracles.polish import Floats
from tests.quantize.inputs import activations, observed, weights

BASE = LinearRecipe(4, 32, symmetric=True, order="static", zero_offset=1)
ORDERS: tuple[Order, ...] = ("static", "actorder", "plain")
KINDS = [
    replace(BASE, bits=bits, symmetric=symmetric, order=order)
    for bits, symmetric, order in product((2, 3, 4, 8), (True, False), ORDERS)
]
SHAPES = [(1, 96, 32), (3, 192, 64), (5, 33, None), (3, 101, None), (1, 7, None), (2, 1, None)]
TIE = 1e-4
"""Share of what one step of a column costs: two codes whose losses are closer than that are equally good."""


def name(recipe: LinearRecipe) -> str:
    return f"{recipe.bits}bit-{'sym' if recipe.symmetric else 'asym'}-{recipe.order}"


def double(tensor: Tensor) -> Floats:
    return tensor.cpu().double().numpy()


def swept(
    out: int, columns: int, recipe: LinearRecipe, device: torch.device | str = "cpu", *, seed: int = 0
) -> tuple[Tensor, Rounded, Tensor]:
    """A weight, what the sweep makes of it, and the matrix by which both are judged; a few channels are dead."""
    weight = weights(out, columns, seed=seed).to(device)
    given = observed(activations(columns, dead=columns // 16, seed=seed), device)
    factor = factorize(given, recipe.order)
    return weight, rounded(weight, factor, recipe), hessian_of(factor, given.gram)


def hessian_of(factor: Factor, gram: Tensor) -> Tensor:
    hessian = factor.hessian(gram)
    assert hessian is not None
    return hessian


def losses(weight: Tensor, result: Rounded, hessian: Tensor) -> Floats:  # (out,)
    """e H eᵀ of every row, from the codes alone."""
    pairs = zip(double(weight), double(result.linear.dequantize()), strict=True)
    return np.array([oracle.loss(row, read, double(hessian)) for row, read in pairs])


def check_against_every_code(out: int, columns: int, recipe: LinearRecipe, device: torch.device) -> None:
    weight, before, hessian = swept(out, columns, recipe, device)
    linear = before.linear
    after = polish(weight, before, hessian)
    group, exact = linear.group_of.cpu().long().numpy(), double(hessian)
    for row in range(out):
        scales, zeros = (double(grid)[group, row] for grid in (linear.scales, linear.zeros))
        given, found = (result.linear.codes[row].cpu().long().numpy() for result in (before, after))
        expected, margins = oracle.polished(double(weight)[row], given, scales, zeros, exact, linear.bits)
        apart = np.flatnonzero(expected != found)
        # Behind a tie that fell the other way, all else may differ.
        if len(apart):
            step = scales[apart[0]] ** 2 * exact[apart[0], apart[0]]
            assert margins[apart[0]] < TIE * step, (row, apart[0])
    for field in ("scales", "zeros", "group_of", "bits"):
        assert getattr(after.linear, field) is getattr(linear, field)
    assert after.linear.codes.dtype == torch.uint8
    assert after.linear.codes.is_contiguous()


@pytest.mark.parametrize("recipe", KINDS, ids=name)
def test_every_code_is_the_best_of_all_when_its_turn_comes(recipe: LinearRecipe, device: torch.device) -> None:
    check_against_every_code(3, 96, recipe, device)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_code_is_the_best_in_any_shape(
    shape: tuple[int, int, int | None], order: Order, device: torch.device
) -> None:
    out, columns, size = shape
    check_against_every_code(out, columns, replace(BASE, group_size=size, order=order), device)


def test_symmetric_grids_have_negative_scales_here() -> None:
    """What the tests above rely on."""
    _, before, _ = swept(3, 96, BASE)
    assert (before.linear.scales < 0).any()


@pytest.mark.parametrize("recipe", KINDS, ids=name)
def test_losses_are_those_of_the_codes_and_never_grow(recipe: LinearRecipe, device: torch.device) -> None:
    weight, before, hessian = swept(5, 96, recipe, device)
    after = polish(weight, before, hessian)
    expected = losses(weight, after, hessian)
    np.testing.assert_allclose(double(after.losses), expected, rtol=1e-3, atol=1e-9)
    assert (expected <= losses(weight, before, hessian) * (1 + 1e-6)).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_pass_lowers_the_loss(bits: int) -> None:
    weight, before, hessian = swept(64, 256, replace(BASE, bits=bits))
    after = polish(weight, before, hessian)
    assert losses(weight, after, hessian).sum() < 0.995 * losses(weight, before, hessian).sum()


def test_passes_come_to_rest_and_then_change_nothing() -> None:
    weight, result, hessian = swept(3, 96, BASE)
    for _ in range(50):
        last, result = result, polish(weight, result, hessian)
        if torch.equal(last.linear.codes, result.linear.codes):
            break
    assert torch.equal(last.linear.codes, result.linear.codes)
    assert torch.equal(last.losses, result.losses)


def test_the_arguments_are_left_alone_and_the_result_is_always_the_same() -> None:
    weight, before, hessian = swept(3, 96, BASE)
    copies = [tensor.clone() for tensor in (weight, before.linear.codes, before.losses, hessian)]
    first, second = (polish(weight, before, hessian) for _ in range(2))
    for tensor, copy in zip((weight, before.linear.codes, before.losses, hessian), copies, strict=True):
        assert torch.equal(tensor, copy)
    assert torch.equal(first.linear.codes, second.linear.codes)
    assert torch.equal(first.losses, second.losses)
    assert not torch.equal(first.linear.codes, before.linear.codes)


@pytest.mark.parametrize("order", ORDERS)
def test_joined_rows_are_polished_as_if_alone(order: Order) -> None:
    weight, before, hessian = swept(10, 96, replace(BASE, order=order))
    joined = polish(weight, before, hessian).linear.codes
    for rows in (slice(0, 3), slice(3, 4), slice(4, 10)):
        linear = replace(
            before.linear,
            codes=before.linear.codes[rows],
            scales=before.linear.scales[:, rows],
            zeros=before.linear.zeros[:, rows],
        )
        alone = polish(weight[rows], Rounded(linear, before.losses[rows]), hessian)
        assert torch.equal(alone.linear.codes, joined[rows])
