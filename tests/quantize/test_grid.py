"""Grids against a search that tries every share and every code one after another."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hermetiq.errors import HermetiqError
from hermetiq.quantize import grid
from hermetiq.quantize.grid import Grid, search
from hermetiq.quantize.spec import LinearRecipe
from tests.oracles import grid as oracle
from tests.oracles.grid import Floats
from tests.quantize.inputs import weights

SMALLEST = 2.0**-24
KINDS = [
    LinearRecipe(bits, None, symmetric=symmetric, order="static", zero_offset=offset)
    for bits, (symmetric, offset) in product((2, 3, 4, 8), ((True, 1), (False, 1), (False, 0)))
]


def name(recipe: LinearRecipe) -> str:
    return f"{recipe.bits}bit-{'sym' if recipe.symmetric else f'asym-v{2 - recipe.zero_offset}'}"


def recipe(bits: int, *, symmetric: bool, offset: int = 1) -> LinearRecipe:
    return LinearRecipe(bits, None, symmetric=symmetric, order="static", zero_offset=offset)


def costs(columns: int, *, seed: int = 0) -> Tensor:
    return torch.randn(columns, generator=torch.Generator().manual_seed(seed)).exp()


def double(tensor: Tensor) -> Floats:
    return tensor.cpu().double().numpy()


def error(weight: Floats, sensitivity: Floats, found: Grid, size: int, bits: int) -> Floats:  # (groups, out)
    """What a grid costs, counted by the oracle."""
    scales, zeros = double(found.scales), double(found.zeros)
    return np.array(
        [
            [
                oracle.error(row[part], sensitivity[part], scales[group, out], int(zeros[group, out]), bits)
                for out, row in enumerate(weight)
            ]
            for group, part in enumerate(slice(start, start + size) for start in range(0, weight.shape[1], size))
        ]
    )


@pytest.mark.parametrize("kind", KINDS, ids=name)
@pytest.mark.parametrize(("out", "columns", "size"), [(1, 96, 32), (3, 256, 64), (5, 37, 37)])
def test_the_best_of_all_shares_is_found(
    kind: LinearRecipe, out: int, columns: int, size: int, device: torch.device
) -> None:
    weight, sensitivity = weights(out, columns) + 0.02, costs(columns)
    found = search(weight.to(device), sensitivity.to(device), kind, size)
    exact, cost = double(weight), double(sensitivity)
    best = [
        [
            oracle.best(
                row[start : start + size],
                cost[start : start + size],
                grid._SHRINK[kind.bits],
                kind.bits,
                symmetric=kind.symmetric,
                smallest_zero=kind.zero_offset,
            )
            for row in exact
        ]
        for start in range(0, columns, size)
    ]
    least = np.array([[choice.error for choice in row] for row in best])
    np.testing.assert_allclose(error(exact, cost, found, size, kind.bits), least, rtol=1e-3)
    same = np.array([[choice.scale for choice in row] for row in best]) == double(found.scales)
    assert same.mean() >= 0.9
    zeros = np.array([[choice.zero for choice in row] for row in best])
    assert (zeros == double(found.zeros))[same].all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_few_shares_do_as_well_as_many(bits: int, symmetric: bool) -> None:
    weight, sensitivity = weights(8, 256), costs(256)
    found = search(weight, sensitivity, recipe(bits, symmetric=symmetric), 64)
    exact, cost = double(weight), double(sensitivity)
    many = [
        oracle.best(
            row[start : start + 64],
            cost[start : start + 64],
            np.linspace(0.4, 1.1, 71).tolist(),
            bits,
            symmetric=symmetric,
            smallest_zero=1,
        ).error
        for row in exact
        for start in range(0, 256, 64)
    ]
    assert error(exact, cost, found, 64, bits).sum() < 1.05 * sum(many)


def test_rows_do_not_depend_on_the_rows_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, sensitivity, kind = weights(7, 64), costs(64), recipe(4, symmetric=False)
    together = search(weight, sensitivity, kind, 32)
    monkeypatch.setattr(grid, "_CACHED_WEIGHTS", 128)
    apart = search(weight, sensitivity, kind, 32)
    assert torch.equal(together.scales, apart.scales)
    assert torch.equal(together.zeros, apart.zeros)


def test_sensitive_columns_get_the_better_grid() -> None:
    """A lone large weight is clipped where it does not count, and kept where it does."""
    weight = weights(1, 64)
    weight[0, 9] = 1.0
    kind = recipe(4, symmetric=True)
    counts = torch.full((64,), 1e-4).index_fill(0, torch.tensor([9]), 1e4)
    kept, clipped = (search(weight, cost, kind, 64).scales.abs().item() for cost in (counts, 1 / counts))
    assert clipped < 0.8 * kept


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_symmetric_scale_has_the_sign_that_gives_the_longer_side_one_more_code(sign: float) -> None:
    weight = sign * torch.tensor([[0.8, -0.7, 0.1, 0.0]])
    found = search(weight, torch.ones(4), recipe(2, symmetric=True), 4)
    assert torch.sign(found.scales) == -sign
    assert found.zeros.item() == 2


@pytest.mark.parametrize(("row", "zero_v1", "zero_v2"), [((0.0, 0.5, 1.0, 1.5), 1, 0), ((0.0, -0.5, -1.0, -1.5), 3, 3)])
def test_only_v2_stores_zero_point_zero(row: tuple[float, ...], zero_v1: int, zero_v2: int) -> None:
    weight = torch.tensor([row])
    zeros = [
        search(weight, torch.ones(4), recipe(2, symmetric=False, offset=offset), 4).zeros.item() for offset in (1, 0)
    ]
    assert zeros == [zero_v1, zero_v2]


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_an_empty_group_among_others(kind: LinearRecipe, device: torch.device) -> None:
    weight = weights(3, 96).to(device)
    weight[1, 32:64] = 0.0
    found = search(weight, costs(96).to(device), kind, 32)
    assert found.scales[1, 1] == SMALLEST
    assert (found.scales != 0).all()
    assert kind.zero_offset <= found.zeros[1, 1] < kind.levels


@pytest.mark.parametrize("kind", KINDS, ids=name)
@pytest.mark.parametrize("size", [1e-9, 1e-7, 1e-5])
def test_scales_below_float16_become_its_smallest(kind: LinearRecipe, size: float) -> None:
    found = search(weights(2, 32) / 0.05 * size, costs(32), kind, 32)
    assert (found.scales.abs() >= SMALLEST).all()
    assert torch.equal(found.scales, found.scales.half().float())


@pytest.mark.parametrize("kind", KINDS, ids=name)
@pytest.mark.parametrize("times", [3.0, 1e12])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_weight_beyond_float16_is_refused(kind: LinearRecipe, times: float, sign: float) -> None:
    weight = weights(3, 96)
    weight[2, 40] = sign * times * 65504.0 * kind.levels
    with pytest.raises(HermetiqError, match="too large for a float16 scale"):
        search(weight, costs(96), kind, 32)


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_the_largest_weight_that_fits_is_not_refused(kind: LinearRecipe) -> None:
    steps = kind.levels // 2 if kind.symmetric else kind.levels - 1
    weight = weights(1, 32)
    weight[0, 3] = 0.99 * 65504.0 * steps / max(grid._SHRINK[kind.bits])
    found = search(weight, costs(32), kind, 32)
    assert 0.4 * 65504.0 < found.scales.abs().item() <= 65504.0


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.lists(st.lists(st.floats(-1000, 1000, width=32), min_size=4, max_size=4), min_size=1, max_size=5),
)
def test_every_grid_can_be_stored_and_is_no_worse_than_the_whole_range(
    kind: LinearRecipe, rows: list[list[float]]
) -> None:
    weight = torch.tensor(rows)
    found = search(weight, torch.ones(4), kind, 4)
    assert torch.equal(found.scales, found.scales.half().float())
    assert (found.scales != 0).all()
    assert torch.equal(found.zeros, found.zeros.round())
    assert found.zeros.min() >= (kind.levels // 2 if kind.symmetric else kind.zero_offset)
    assert found.zeros.max() < kind.levels
    exact = double(weight)
    for row, cost in zip(exact, error(exact, np.ones(4), found, 4, kind.bits)[0], strict=True):
        share = min(grid._SHRINK[kind.bits], key=lambda share: abs(share - 1.0))
        whole = oracle.best(
            row, np.ones(4), [share], kind.bits, symmetric=kind.symmetric, smallest_zero=kind.zero_offset
        )
        assert cost <= whole.error * (1 + 1e-3) + 1e-12
