"""Codes against GPTQ column by column, and what feedback, order and folds are worth."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hermetiq.errors import HermetiqError
from hermetiq.quantize import grid
from hermetiq.quantize.factor import DAMPING, ROUND_TO_NEAREST, Factor, factorize
from hermetiq.quantize.fold import balanced
from hermetiq.quantize.gptq import rounded, split
from hermetiq.quantize.result import QuantizedLinear
from hermetiq.quantize.spec import LinearRecipe, Order
from tests.oracles import gptq as oracle
from tests.oracles import grid as grid_oracle
from tests.oracles.gptq import Floats
from tests.quantize.inputs import activations, observed, statistics, weights, with_eigenvalues

TIE = 1e-4
"""Share of a step: what lies this close to the middle between two codes may be rounded to either."""
BASE = LinearRecipe(4, 32, symmetric=True, order="static", zero_offset=1)
ORDERS: tuple[Order, ...] = ("static", "actorder", "plain")
KINDS = [
    replace(BASE, bits=bits, symmetric=symmetric, order=order, zero_offset=offset)
    for bits, (symmetric, offset), order in product((2, 3, 4, 8), ((True, 1), (False, 1), (False, 0)), ORDERS)
]
SHAPES = [(1, 96, 32), (3, 192, 64), (5, 384, 128), (2, 768, 256), (7, 101, None), (1, 7, None), (2, 1, None)]


def quantize(weight: Tensor, factor: Factor, recipe: LinearRecipe) -> QuantizedLinear:
    return rounded(weight, factor, recipe).linear


def name(recipe: LinearRecipe) -> str:
    size = f"g{recipe.group_size}" if recipe.group_size else "channel"
    return f"{recipe.bits}bit-{size}-{'sym' if recipe.symmetric else f'asym-v{2 - recipe.zero_offset}'}-{recipe.order}"


def double(tensor: Tensor) -> Floats:
    return tensor.cpu().double().numpy()


def output_error(weight: Tensor, linear: QuantizedLinear, gram: Tensor) -> float:
    """tr(E G Eᵀ)"""
    difference = double(linear.dequantize()) - double(weight)
    return float(np.trace(difference @ double(gram) @ difference.T))


def nearest(weight: Tensor, factor: Factor, recipe: LinearRecipe) -> QuantizedLinear:
    """Rounding to nearest on the grids that GPTQ gets, which in static order are those of the original weights."""
    assert recipe.order == "static"
    alone = Factor(factor.order, torch.diag(factor.upper.diagonal()), factor.damping, factor.step)
    return quantize(weight, alone, recipe)


def as_the_turn_came(weight: Tensor, gram: Tensor, factor: Factor, linear: QuantizedLinear) -> Floats:
    """What the oracle has for each column just before it is rounded, with all columns before rounded as in `linear`."""
    read = double(linear.dequantize())
    return oracle.sweep(
        double(weight), oracle.damped(double(gram), factor.damping), factor.order.tolist(), lambda j, _: read[:, j]
    )


def assert_nearest_codes(values: Floats, linear: QuantizedLinear) -> None:
    """Every code is the closest to its value, ties aside."""
    group = linear.group_of.cpu().long().numpy()
    scales, zeros = double(linear.scales)[group].T, double(linear.zeros)[group].T
    exact = np.clip(values / scales + zeros, 0, (1 << linear.bits) - 1)
    assert np.abs(exact - double(linear.codes)).max() <= 0.5 + TIE


def assert_best_grids(values: Floats, costs: Floats, linear: QuantizedLinear, recipe: LinearRecipe) -> None:
    """No share of any group's range would have been better; where two are as good as each other, either."""
    for group, out in product(range(linear.scales.shape[0]), range(values.shape[0])):
        columns = linear.group_of.cpu().numpy() == group
        best = grid_oracle.best(
            values[out, columns],
            costs[columns],
            grid._SHRINK[recipe.bits],
            recipe.bits,
            symmetric=recipe.symmetric,
            smallest_zero=recipe.zero_offset,
        )
        scale, zero = float(linear.scales[group, out]), int(linear.zeros[group, out])
        assert grid_oracle.error(values[out, columns], costs[columns], scale, zero, recipe.bits) == pytest.approx(
            best.error, rel=2e-3, abs=1e-12
        )


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_codes_are_those_of_the_paper(kind: LinearRecipe, device: torch.device) -> None:
    check_against_the_paper((3, 96), kind, device)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_are_those_of_the_paper_in_any_shape(
    shape: tuple[int, int, int | None], order: Order, device: torch.device
) -> None:
    out, columns, size = shape
    check_against_the_paper((out, columns), replace(BASE, group_size=size, order=order, symmetric=False), device)


def check_against_the_paper(shape: tuple[int, int], recipe: LinearRecipe, device: torch.device) -> None:
    """Codes, grids and groups of one weight; a few channels of its input are dead."""
    out, columns = shape
    weight = weights(out, columns).to(device)
    given = observed(activations(columns, dead=columns // 16), device)
    factor = factorize(given, recipe.order)
    made = rounded(weight, factor, recipe)
    linear = made.linear
    size = recipe.group_size or columns
    place = np.argsort(factor.order.tolist()) if recipe.order == "actorder" else np.arange(columns)
    assert linear.group_of.tolist() == (place // size).tolist()
    values = as_the_turn_came(weight, given.gram, factor, linear)
    assert_nearest_codes(values, linear)
    # Static grids are those of the weights as they were. Fresh ones are searched when the first column's turn comes.
    seen = (
        double(weight) if recipe.order == "static" else at_the_start_of_each_group(weight, given.gram, factor, linear)
    )
    assert_best_grids(seen, double(factor.sensitivity), linear, recipe)
    difference = double(linear.dequantize()) - double(weight)
    hessian = oracle.damped(double(given.gram / given.gram.diagonal().mean()), factor.damping)
    np.testing.assert_allclose(double(made.losses), ((difference @ hessian) * difference).sum(1), rtol=1e-3, atol=1e-9)


def at_the_start_of_each_group(weight: Tensor, gram: Tensor, factor: Factor, linear: QuantizedLinear) -> Floats:
    """What the columns of each group had become when the first of them was rounded."""
    read, group_of = double(linear.dequantize()), linear.group_of.cpu().numpy()
    seen = np.empty_like(read)
    started = set()

    def watched(column: int, left: Floats) -> Floats:
        if group_of[column] not in started:
            started.add(group_of[column])
            members = group_of == group_of[column]
            seen[:, members] = left[:, members]
        return read[:, column]

    oracle.sweep(double(weight), oracle.damped(double(gram), factor.damping), factor.order.tolist(), watched)
    return seen


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_oracle_left_alone_comes_to_the_same_codes(symmetric: bool, device: torch.device) -> None:
    recipe = replace(BASE, symmetric=symmetric)
    weight, given = weights(3, 96, seed=1).to(device), observed(activations(96, seed=1), device)
    factor = factorize(given, "static")
    linear = quantize(weight, factor, recipe)
    scales, zeros = double(linear.scales), double(linear.zeros).astype(int)

    def on_the_grid(column: int, left: Floats) -> Floats:
        grids = zip(left[:, column], scales[column // 32], zeros[column // 32], strict=True)
        return np.array([grid_oracle.nearest(np.array([w]), s, z, recipe.bits)[0] for w, s, z in grids])

    values = oracle.sweep(
        double(weight),
        oracle.damped(double(given.gram), DAMPING),
        oracle.most_active_first(double(given.gram)),
        on_the_grid,
    )
    codes = np.clip(np.rint(values / scales.repeat(32, 0).T + zeros.repeat(32, 0).T), 0, recipe.levels - 1)
    assert (codes == double(linear.codes)).all()


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_without_exchange_every_weight_takes_the_closest_point(kind: LinearRecipe, device: torch.device) -> None:
    weight = weights(3, 96).to(device)
    gram = torch.diag(torch.rand(96, generator=torch.Generator().manual_seed(1)) + 0.1)
    linear = quantize(weight, factorize(statistics(gram.to(device)), kind.order), kind)
    assert_closest_points(double(weight), linear)


def assert_closest_points(weight: Floats, linear: QuantizedLinear) -> None:
    dequantized, group_of = double(linear.dequantize()), linear.group_of.cpu().numpy()
    for out, column in np.ndindex(*weight.shape):
        scale, zero = float(linear.scales[group_of[column], out]), int(linear.zeros[group_of[column], out])
        closest = grid_oracle.nearest(weight[out, column : column + 1], scale, zero, linear.bits)[0]
        step = TIE * abs(scale)
        assert abs(dequantized[out, column] - weight[out, column]) <= abs(closest - weight[out, column]) + step


def test_dead_columns_are_rounded_to_nearest(device: torch.device) -> None:
    weight, given = weights(5, 96).to(device), observed(activations(96, dead=6), device)
    dead = given.gram.diagonal() == 0
    factor = factorize(given, "static")
    linear = quantize(weight, factor, BASE)
    plainly = nearest(weight, factor, BASE)
    assert torch.equal(linear.codes[:, dead], plainly.codes[:, dead])
    assert not torch.equal(linear.codes, plainly.codes)


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_a_group_of_zeros_stays_zero(kind: LinearRecipe, device: torch.device) -> None:
    """Without exchange between groups nothing is fed into it."""
    weight = weights(3, 96).to(device)
    weight[1, 32:64] = 0.0
    linear = quantize(weight, factorize(statistics(torch.eye(96, device=device)), kind.order), kind)
    assert not linear.dequantize()[1, 32:64].any()


def test_rounding_to_nearest_is_what_the_last_step_of_the_ladder_does() -> None:
    weight = weights(3, 96)
    factor = factorize(statistics(with_eigenvalues(*[1.0] * 95, -3.0)), "static")
    assert factor.step == ROUND_TO_NEAREST
    assert_closest_points(double(weight), quantize(weight, factor, BASE))


@pytest.mark.parametrize("order", ORDERS)
def test_a_weight_beyond_float16_is_refused(order: Order) -> None:
    weight = weights(3, 96)
    weight[1, 50] = 1e9
    with pytest.raises(HermetiqError, match="too large for a float16 scale"):
        quantize(weight, factorize(observed(activations(96)), order), replace(BASE, order=order))


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    out=st.integers(1, 4),
    groups=st.integers(1, 3),
    tokens=st.integers(1, 100),
    size=st.sampled_from([1e-6, 1.0, 1e3]),
    skew=st.floats(0.0, 4.0),
    seed=st.integers(0, 1000),
)
def test_whatever_the_inputs_the_result_can_be_stored(
    kind: LinearRecipe, out: int, groups: int, tokens: int, size: float, skew: float, seed: int
) -> None:
    columns = 32 * groups
    weight = size * weights(out, columns, seed=seed)
    inputs = activations(columns, skew=skew, dead=seed % 5, seed=seed)[:tokens]
    linear = quantize(weight, factorize(observed(inputs), kind.order), kind)
    assert (linear.codes.dtype, linear.codes.shape) == (torch.uint8, (out, columns))
    assert (linear.scales.dtype, linear.scales.shape) == (torch.float16, (groups, out))
    assert (linear.zeros.dtype, linear.zeros.shape) == (torch.uint8, (groups, out))
    assert (linear.group_of.dtype, linear.bits) == (torch.int32, kind.bits)
    assert linear.group_of.bincount().tolist() == [32] * groups
    assert linear.codes.int().max() < kind.levels
    assert linear.scales.isfinite().all()
    assert linear.scales.all()
    if kind.symmetric:
        assert (linear.zeros == kind.levels // 2).all()
    else:
        assert linear.zeros.min() >= kind.zero_offset
        assert linear.zeros.int().max() < kind.levels
        assert (linear.scales > 0).all()
    assert linear.dequantize().isfinite().all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_feedback_lowers_the_output_error(bits: int) -> None:
    recipe = replace(BASE, bits=bits)
    weight, given = weights(64, 256), observed(activations(256))
    factor = factorize(given, "static")
    linear, plainly = quantize(weight, factor, recipe), nearest(weight, factor, recipe)
    assert torch.equal(linear.scales, plainly.scales)
    assert output_error(weight, linear, given.gram) < 0.6 * output_error(weight, plainly, given.gram)


def test_static_order_is_better_than_plain_where_few_channels_carry_most() -> None:
    weight, given = weights(64, 256), observed(activations(256, skew=2.0))
    errors = [
        output_error(weight, quantize(weight, factorize(given, order), replace(BASE, order=order)), given.gram)
        for order in ("static", "plain")
    ]
    assert errors[0] < 0.8 * errors[1]


def test_folding_lowers_the_error_of_uneven_channels() -> None:
    weight, given = weights(64, 256), observed(activations(256, skew=2.0))
    factor = factorize(given, "static")
    factors = balanced(weight, factor.sensitivity)
    folded_gram = given.gram / torch.outer(factors, factors)
    folded = quantize(weight * factors, factor.folded(factors), BASE)
    errors = [
        output_error(weight * factors, folded, folded_gram),
        output_error(weight, quantize(weight, factor, BASE), given.gram),
    ]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("kind", [replace(BASE, order=order) for order in ORDERS], ids=name)
def test_joined_rows_are_rounded_as_if_alone(kind: LinearRecipe) -> None:
    parts = [weights(rows, 96, seed=rows) for rows in (3, 1, 6)]
    factor = factorize(observed(activations(96)), kind.order)
    joined = split(quantize(torch.cat(parts), factor, kind), [3, 1, 6])
    for part, linear in zip(parts, joined, strict=True):
        alone = quantize(part, factor, kind)
        for field in ("codes", "scales", "zeros", "group_of"):
            assert torch.equal(getattr(linear, field), getattr(alone, field))
            assert getattr(linear, field).is_contiguous()


@pytest.mark.parametrize("order", ORDERS)
def test_devices_agree(order: Order, device: torch.device) -> None:
    """Sums are taken in another order elsewhere, so ties may fall the other way, and a few codes with them."""
    recipe = replace(BASE, group_size=128, order=order)
    weight, inputs = weights(64, 512), activations(512, dead=4)
    gram = observed(inputs).gram
    here, there = (
        quantize(weight.to(place), factorize(statistics(gram.to(place)), order), recipe) for place in ("cpu", device)
    )
    apart = (here.codes.int() - there.codes.cpu().int()).abs()
    assert (apart > 0).float().mean() < 1e-3
    assert apart.max() <= 1
    assert torch.equal(here.group_of, there.group_of.cpu())
    torch.testing.assert_close(here.scales, there.scales.cpu(), rtol=2**-9, atol=0)
