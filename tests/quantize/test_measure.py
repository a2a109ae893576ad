"""Measured errors against rounding each rung alone, and disturbances against coarse rounding by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from hermetiq.errors import HermetiqError
from hermetiq.quantize import grid
from hermetiq.quantize.exl2 import Part, rounded, stored_order
from hermetiq.quantize.factor import Factor, factorize
from hermetiq.quantize.ladder import LADDER, Rung, stored_bits
from hermetiq.quantize.measure import disturbed, measure
from tests.oracles import grid as grid_oracle
from tests.quantize.inputs import activations, observed, statistics, weights

FEW = LADDER[::4]


def shared_input(columns: int, device: torch.device | str = "cpu") -> Factor:
    return factorize(observed(activations(columns, dead=columns // 16), device), "static")


def loss(weight: Tensor, factor: Factor, order: Tensor, rung: Rung) -> float:
    """Of the whole weight, rounded alone."""
    (made,) = rounded([Part(weight, rung.groups(len(order)))], factor, order, None)
    return float(made.losses.sum())


@pytest.mark.parametrize("columns", [96, 160])
def test_of_few_rows_every_rung_costs_what_it_costs_alone(columns: int, device: torch.device) -> None:
    pieces = [weights(rows, columns, seed=rows).to(device) for rows in (40, 1, 17)]
    factor = shared_input(columns, device)
    order = stored_order(torch.cat(pieces), factor)
    for weight, measured in zip(pieces, measure(pieces, factor, order, FEW), strict=True):
        assert measured == pytest.approx([loss(weight, factor, order, rung) for rung in FEW], rel=1e-3)


def test_of_many_rows_a_sample_speaks_for_all() -> None:
    """Where rows are of one kind. Outliers here and there make it a matter of luck, mostly the same for all rungs."""
    generator = torch.Generator().manual_seed(0)
    weight, factor = torch.randn(400, 96, generator=generator), shared_input(96)
    order = stored_order(weight, factor)
    (measured,) = measure([weight], factor, order, FEW)
    shares = np.array(measured) / [loss(weight, factor, order, rung) for rung in FEW]
    assert shares == pytest.approx(1.0, abs=0.2)
    assert shares.max() < 1.25 * shares.min()


def test_the_sample_is_spread_over_all_rows() -> None:
    """Heads and their rows lie side by side: a sample from one end would miss most of them."""
    weight, factor = torch.randn(320, 64, generator=torch.Generator().manual_seed(0)), shared_input(64)
    weight[:160] *= 10
    order = stored_order(weight, factor)
    (measured,) = measure([weight], factor, order, FEW)
    assert measured == pytest.approx([loss(weight, factor, order, rung) for rung in FEW], rel=0.2)


@pytest.mark.parametrize("rung", [LADDER[1], LADDER[8], LADDER[-1]], ids=str)
def test_sampled_rows_lose_almost_what_they_lose_among_all(rung: Rung) -> None:
    """A little less: fewer rows have to agree on a group's largest scale."""
    weight, factor = weights(640, 64), shared_input(64)
    order = stored_order(weight, factor)
    (made,) = rounded([Part(weight, rung.groups(64))], factor, order, None)
    ((measured,),) = measure([weight], factor, order, [rung])
    sizes = weight.square() @ factor.sensitivity
    assert 0.8 < measured / float(made.losses[::10].sum() * sizes.sum() / sizes[::10].sum()) < 1.05


def test_no_rows_beside_it_change_a_measurement() -> None:
    pieces, factor = [weights(rows, 96, seed=rows) for rows in (70, 5)], shared_input(96)
    order = stored_order(torch.cat(pieces), factor)
    together = measure(pieces, factor, order, FEW)
    for weight, measured in zip(pieces, together, strict=True):
        assert measure([weight], factor, order, FEW) == [pytest.approx(measured)]


def test_larger_rungs_mostly_lose_less() -> None:
    """A rung may lose more than a smaller one that divides its bits better, but not than any that is a bit smaller."""
    weight, factor = weights(16, 576), shared_input(576)
    (measured,) = measure([weight], factor, stored_order(weight, factor), LADDER)
    assert sum(after < before for before, after in pairwise(measured)) >= len(LADDER) - 3
    sizes = [stored_bits(rung.groups(576), 16) / weight.numel() for rung in LADDER]
    for larger, less in zip(sizes, measured, strict=True):
        for smaller, more in zip(sizes, measured, strict=True):
            assert less < 0.5 * more or larger - smaller < 1
    assert measured[-1] < 1e-3 * measured[0]


def test_rows_count_as_often_as_they_are_said_to() -> None:
    weight, factor = weights(40, 96), shared_input(96)
    order, counts = stored_order(weight, factor), torch.arange(40.0)
    (made,) = rounded([Part(weight, FEW[0].groups(96))], factor, order, None)
    (measured,) = measure([weight], factor, order, FEW[:1], [counts])
    assert measured == (pytest.approx(float(made.losses @ counts)),)


def test_nothing_costs_nothing() -> None:
    factor = shared_input(96)
    assert measure([torch.zeros(3, 96)], factor, torch.arange(96), FEW) == [(0.0,) * len(FEW)]


@pytest.mark.parametrize(
    "solve", [lambda weight: measure([weight], shared_input(96), torch.arange(96), FEW), disturbed]
)
def test_a_weight_beyond_float16_is_refused(solve) -> None:
    weight = weights(3, 96)
    weight[1, 50] = 1e9
    with pytest.raises(HermetiqError, match="too large for"):
        solve(weight)


@pytest.mark.parametrize("columns", [32, 96, 576])
def test_disturbed_weights_are_those_of_three_bits(columns: int, device: torch.device) -> None:
    """To the nearest of eight levels of the best scale for every 32 weights."""
    weight = weights(5, columns).to(device)
    found = disturbed(weight)
    assert (found.shape, found.dtype) == (weight.shape, weight.dtype)
    for row, read in zip(weight.cpu().double().numpy(), found.cpu().double().numpy(), strict=True):
        for start in range(0, columns, 32):
            part = slice(start, start + 32)
            best = grid_oracle.best(row[part], np.ones(32), grid._SHRINK[3], 3, symmetric=True, smallest_zero=0)
            assert ((read[part] - row[part]) ** 2).sum() == pytest.approx(best.error, rel=1e-3)
            assert len(set(read[part])) <= 8


def test_disturbances_are_the_same_every_time_and_leave_the_weight_alone() -> None:
    weight = weights(8, 96)
    kept = weight.clone()
    assert torch.equal(disturbed(weight), disturbed(weight))
    assert torch.equal(weight, kept)


def test_zeros_are_not_disturbed() -> None:
    weight = weights(3, 96)
    weight[1] = 0.0
    weight[:, 32:64] = 0.0
    assert not disturbed(weight)[weight == 0].any()


def test_a_disturbance_weighs_as_much_as_the_smaller_rungs() -> None:
    """It stands for what rungs do to a layer, so it must be of their kind: between two bits and four."""
    weight = weights(64, 160)
    factor = factorize(statistics(torch.eye(160)), "static")
    (measured,) = measure([weight], factor, stored_order(weight, factor), (LADDER[1], LADDER[8]))
    energy = float((disturbed(weight) - weight).square().sum())
    assert measured[1] < energy < measured[0]
