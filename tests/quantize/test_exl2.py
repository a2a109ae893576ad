"""EXL2's codes against GPTQ column by column, its scales against all there are, its reading number by number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hermetiq.calibration.statistics import Statistics
from hermetiq.errors import HermetiqError
from hermetiq.quantize import exl2
from hermetiq.quantize.exl2 import Part, rounded, search, stored_order
from hermetiq.quantize.factor import Factor, factorize
from hermetiq.quantize.gptq import Rounded
from hermetiq.quantize.ladder import Groups, Rung
from hermetiq.quantize.result import MixedLinear
from tests.oracles import exl2 as oracle
from tests.oracles import gptq as gptq_oracle
from tests.oracles.exl2 import Floats
from tests.quantize.inputs import activations, observed, statistics, weights

TIE = 1e-4
"""Share of a step: what lies this close to the middle between two codes may be rounded to either."""
TINIEST = 2.0**-24
"""Smallest positive float16."""
RUNGS = [
    *(Rung(((bits, 1.0),), 64) for bits in (2, 5, 8)),
    Rung(((3, 0.1), (2, 0.9)), 64),
    Rung(((6, 0.05), (4, 0.2), (2, 0.75)), 32),
    Rung(((8, 0.3), (6, 0.3), (3, 0.4)), 128),
]
MIXED = RUNGS[-2]
WIDTHS = (2, 3, 4, 5, 6, 8)


def double(tensor: Tensor) -> Floats:
    return tensor.cpu().double().numpy()


def uneven(out: int, columns: int, *, seed: int = 0) -> Tensor:  # (out, columns)
    """Rows of different sizes, each with outliers."""
    sizes = torch.randn(out, 1, generator=torch.Generator().manual_seed(seed + 1)).mul(0.5).exp()
    return weights(out, columns, seed=seed) * sizes


@dataclass(frozen=True)
class Layer:
    """A weight with the input that it meets."""

    weight: Tensor
    given: Statistics
    factor: Factor
    order: Tensor

    @property
    def hessian(self) -> Tensor:
        hessian = self.factor.hessian(self.given.gram)
        assert hessian is not None
        return hessian

    def rounded(self, groups: Groups, *, polished: bool = False) -> Rounded[MixedLinear]:
        hessian = self.hessian if polished else None
        return rounded([Part(self.weight, groups)], self.factor, self.order, hessian)[0]

    def losses(self, linear: MixedLinear) -> Floats:  # (out,)
        """e H eᵀ of each row, from what the reader has."""
        difference = double(linear.dequantize()) - double(self.weight)
        return np.asarray(((difference @ double(self.hessian)) * difference).sum(1))


def layer(weight: Tensor, device: torch.device | str = "cpu", *, seed: int = 0) -> Layer:
    """With correlated inputs of which a few are dead."""
    weight = weight.to(device)
    columns = weight.shape[1]
    given = observed(activations(columns, dead=columns // 16, seed=seed), device)
    factor = factorize(given, "static")
    return Layer(weight, given, factor, stored_order(weight, factor))


def steps(linear: MixedLinear) -> Floats:  # (out, in)
    """The step of each weight, by the oracle."""
    by_group = np.array([oracle.steps(float(largest)) for largest in linear.scale_max.cpu()])
    indices = linear.indices.cpu().long().numpy()
    return np.take_along_axis(by_group, indices, 1)[linear.group_of.cpu().numpy()].T


def bits_of(linear: MixedLinear) -> Floats:  # (in,)
    bits = np.empty(len(linear.order))
    bits[linear.order.cpu().numpy()] = [bits for bits, size in linear.groups for _ in range(size)]
    return bits


@pytest.mark.parametrize("columns", [64, 96, 160])
@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_codes_are_those_of_the_paper(rung: Rung, columns: int, device: torch.device) -> None:
    check_against_the_paper(layer(uneven(3, columns), device), rung.groups(columns))


@pytest.mark.parametrize("size", [64, 128])
def test_codes_are_those_of_the_paper_in_many_groups(size: int, device: torch.device) -> None:
    groups = Rung(((4, 0.25), (3, 0.75)), size).groups(576)
    assert groups[-1][1] == 64
    check_against_the_paper(layer(uneven(2, 576), device), groups)


def check_against_the_paper(given: Layer, groups: Groups) -> None:
    """Every code is the closest to what its weight had become when its column's turn came."""
    made = given.rounded(groups)
    linear = made.linear
    step, middle = steps(linear), 2 ** (bits_of(linear) - 1)
    swept = step * (double(linear.codes) - middle)
    values = gptq_oracle.sweep(
        double(given.weight),
        gptq_oracle.damped(double(given.given.gram), given.factor.damping),
        given.factor.order.tolist(),
        lambda column, _: swept[:, column],
    )
    exact = np.clip(values / step + middle, 0, 2 * middle - 1)
    assert np.abs(exact - double(linear.codes)).max() <= 0.5 + TIE
    difference = swept - double(given.weight)
    expected = ((difference @ double(given.hessian)) * difference).sum(1)
    np.testing.assert_allclose(double(made.losses), expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_all_that_is_stored_has_its_type_and_range(rung: Rung, device: torch.device) -> None:
    given = layer(uneven(5, 160), device)
    groups = rung.groups(160)
    linear = given.rounded(groups, polished=True).linear
    assert (linear.codes.dtype, linear.codes.shape) == (torch.uint8, (5, 160))
    assert (linear.indices.dtype, linear.indices.shape) == (torch.uint8, (len(groups), 5))
    assert (linear.scale_max.dtype, linear.scale_max.shape) == (torch.float16, (len(groups),))
    assert linear.order.dtype == torch.int32
    assert torch.equal(linear.order.sort().values.cpu(), torch.arange(160, dtype=torch.int32))
    assert linear.groups == groups
    assert linear.indices.max() <= 15
    assert (double(linear.codes) < 2 ** bits_of(linear)).all()


@settings(max_examples=30, deadline=None)
@given(rung=st.sampled_from(RUNGS), largest=st.floats(TINIEST, 65504, width=16), seed=st.integers(0, 1000))
def test_the_weights_are_those_that_the_reader_has(rung: Rung, largest: float, seed: int) -> None:
    """To the last bit, also where float16 runs out of digits or of range."""
    generator = torch.Generator().manual_seed(seed)
    groups = rung.groups(160)
    scale_max = (largest * torch.rand(len(groups), generator=generator)).half()
    order = torch.randperm(160, generator=generator)
    bits = torch.tensor([bits for bits, size in groups for _ in range(size)])[order.argsort()]
    codes = (torch.rand(2, 160, generator=generator) * 2**bits).to(torch.uint8)
    indices = torch.randint(16, (len(groups), 2), dtype=torch.uint8, generator=generator)
    linear = MixedLinear(codes, indices, scale_max, order.to(torch.int32), groups)
    with np.errstate(over="ignore"):
        expected = oracle.read(codes.long().numpy(), indices.long().numpy(), double(scale_max), order.tolist(), groups)
    np.testing.assert_array_equal(double(linear.dequantize()), expected)


@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_groups_are_filled_in_the_stored_order(rung: Rung) -> None:
    given = layer(uneven(3, 160))
    linear = given.rounded(rung.groups(160)).linear
    place = 0
    for group, (_, size) in enumerate(linear.groups):
        for column in linear.order[place : place + size].tolist():
            assert linear.group_of[column] == group
        place += size
    assert torch.equal(linear.order.long(), given.order)


def test_the_costliest_columns_are_stored_first() -> None:
    """A column costs what its input's part that no other replaces costs, times the size of its weights."""
    given = layer(uneven(6, 96))
    hessian = gptq_oracle.damped(double(given.given.gram), given.factor.damping)
    alone = gptq_oracle.conditional_variance(hessian, given.factor.order.tolist())
    costs = alone * (double(given.weight) ** 2).mean(0)
    stored = costs[given.order.cpu().numpy()]
    assert (stored[1:] <= stored[:-1] * (1 + 1e-3)).all()


def test_equally_costly_columns_keep_their_order() -> None:
    factor = factorize(statistics(torch.eye(64)), "static")
    assert stored_order(torch.ones(3, 64), factor).tolist() == list(range(64))


@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_polishing_lowers_the_loss_and_tells_it(rung: Rung, device: torch.device) -> None:
    given = layer(uneven(16, 160), device)
    before, after = (given.rounded(rung.groups(160), polished=polished) for polished in (False, True))
    # The reader rounds products to float16, which the sweep leaves out of account: much where there are 8 bits.
    coarse = max(bits for bits, _ in rung.groups(160)) < 8
    assert (double(after.losses) <= double(before.losses) * (1 + 1e-5)).all()
    assert after.losses.sum() < before.losses.sum()
    np.testing.assert_allclose(given.losses(after.linear), double(after.losses), rtol=0.03 if coarse else 0.1)
    for field in ("indices", "scale_max", "order"):
        assert torch.equal(getattr(after.linear, field), getattr(before.linear, field))


def test_without_exchange_every_weight_takes_the_closest_level(device: torch.device) -> None:
    weight = uneven(3, 160).to(device)
    factor = factorize(statistics(torch.diag(torch.linspace(0.5, 2, 160, device=device))), "static")
    linear = rounded([Part(weight, MIXED.groups(160))], factor, stored_order(weight, factor), None)[0].linear
    step, middle = steps(linear), 2 ** (bits_of(linear) - 1)
    exact = np.clip(double(weight) / step + middle, 0, 2 * middle - 1)
    assert np.abs(exact - double(linear.codes)).max() <= 0.5 + TIE


def test_feedback_lowers_the_error() -> None:
    given = layer(uneven(32, 256))
    alone = Factor(given.factor.order, torch.diag(given.factor.upper.diagonal()), given.factor.damping, "")
    groups = MIXED.groups(256)
    plainly = rounded([Part(given.weight, groups)], alone, given.order, None)[0].linear
    made = given.rounded(groups).linear
    assert torch.equal(made.indices, plainly.indices)
    assert given.losses(made).sum() < 0.6 * given.losses(plainly).sum()


def test_better_widths_go_where_they_are_worth_most() -> None:
    """The same widths in any other order lose more."""
    given = layer(uneven(16, 256))
    groups = Rung(((4, 0.25), (2, 0.75)), 64).groups(256)
    least = given.rounded(groups).losses.sum()
    for other in (torch.arange(256), given.order.flip(0)):
        assert rounded([Part(given.weight, groups)], given.factor, other, None)[0].losses.sum() > 1.2 * least


@pytest.mark.parametrize("polished", [False, True])
def test_layers_of_one_input_are_rounded_as_if_alone(polished: bool) -> None:
    """Whatever the widths of the others: they share nothing but the order."""
    given = layer(torch.cat([uneven(rows, 160, seed=rows) for rows in (3, 1, 6)]))
    pieces = torch.split(given.weight, [3, 1, 6])
    parts = [Part(weight, rung.groups(160)) for weight, rung in zip(pieces, (MIXED, *RUNGS[:2]), strict=True)]
    hessian = given.hessian if polished else None
    for part, joined in zip(parts, rounded(parts, given.factor, given.order, hessian), strict=True):
        (alone,) = rounded([part], given.factor, given.order, hessian)
        assert joined.linear.groups == part.groups
        for field in ("codes", "indices", "scale_max", "order"):
            assert torch.equal(getattr(joined.linear, field), getattr(alone.linear, field))
            assert getattr(joined.linear, field).is_contiguous()
        torch.testing.assert_close(joined.losses, alone.losses)


@dataclass(frozen=True)
class Found:
    """What a search came to, group by group, in float64."""

    rows: list[Floats]  # each (out, columns)
    costs: list[Floats]  # each (columns,)
    largest: list[float]
    indices: list[list[int]]
    bits: int

    def errors(self, group: int) -> Floats:  # (out,)
        of_index = [
            oracle.errors(self.rows[group], self.costs[group], step, self.bits)
            for step in oracle.steps(self.largest[group])
        ]
        return np.array([of_index[index][row] for row, index in enumerate(self.indices[group])])


def searched(out: int, size: int, bits: int, device: torch.device | str = "cpu", *, seed: int = 0) -> Found:
    groups = uneven(out, 3 * size, seed=seed).view(out, 3, size)
    costs = torch.randn(3, size, generator=torch.Generator().manual_seed(seed)).exp()
    index, unit = search(groups.to(device), costs.to(device), bits)
    return Found(
        [double(groups[:, group]) for group in range(3)],
        list(double(costs)),
        (double(unit) * 256).tolist(),
        index.T.tolist(),
        bits,
    )


ABOVE_THE_BEST_INDEX = {2: 1.04, 3: 1.04, 4: 1.04, 5: 1.15, 6: 1.15, 8: 1.15}
"""By bits, what a group may lose by looking only at the indices about the wanted scale; mostly it loses nothing."""
ABOVE_THE_BEST_OF_ALL = {2: 1.04, 3: 1.04, 4: 1.04, 5: 1.15, 6: 1.25, 8: 1.25}
"""What it may lose in all. With fine levels a scale's error hangs on how a few large weights happen to fall between
them, and a search of every scale finds strokes of luck that trials do not."""


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("bits", WIDTHS)
def test_scales_come_near_the_best_of_all(bits: int, size: int, device: torch.device) -> None:
    found = searched(24, size, bits, device)
    for group, (rows, costs, largest) in enumerate(zip(found.rows, found.costs, found.largest, strict=True)):
        error = found.errors(group).sum()
        assert error <= ABOVE_THE_BEST_INDEX[bits] * oracle.least_errors(rows, costs, largest, bits).sum()
        widest = max(oracle.unclipped(row, bits) for row in rows)
        candidates = [float(np.float16(share * widest)) for share in np.linspace(0.2, 1.1, 31)]
        assert error <= ABOVE_THE_BEST_OF_ALL[bits] * oracle.least_error(rows, costs, candidates, bits)


def test_every_group_has_the_scales_that_suit_its_columns() -> None:
    """Weighted by what an error in each of them costs after feedback."""
    given = layer(uneven(16, 160))
    linear = given.rounded(((4, 64), (3, 64), (3, 32))).linear
    costs, start = double(given.factor.sensitivity), 0
    for group, (bits, size) in enumerate(linear.groups):
        columns = given.order[start : start + size].tolist()
        start += size
        rows, largest = double(given.weight)[:, columns], float(linear.scale_max[group])
        of_index = [oracle.errors(rows, costs[columns], step, bits) for step in oracle.steps(largest)]
        error = sum(of_index[index][row] for row, index in enumerate(linear.indices[group].tolist()))
        assert error <= 1.05 * np.min(of_index, axis=0).sum()


@pytest.mark.parametrize("bits", WIDTHS)
def test_scales_are_better_than_those_of_ratios_alone(bits: int) -> None:
    """Indices by the ratio of what a row needs lose more, with the same largest scale and with one that clips none."""
    found = searched(32, 64, bits)
    for group, (rows, costs, largest) in enumerate(zip(found.rows, found.costs, found.largest, strict=True)):
        needed = [oracle.unclipped(row, bits) for row in rows]
        for shared in (largest, max(needed)):
            chosen = [oracle.by_ratio(step, shared) for step in needed]
            by_index = [oracle.errors(rows, costs, step, bits) for step in oracle.steps(shared)]
            by_ratio = sum(by_index[index][row] for row, index in enumerate(chosen))
            assert found.errors(group).sum() < by_ratio


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_row_alone_gets_what_it_wants(bits: int) -> None:
    """Nothing is shared with others, so the 16 indices are there to be chosen from in vain."""
    found = searched(1, 64, bits)
    for group, (rows, costs) in enumerate(zip(found.rows, found.costs, strict=True)):
        best = oracle.least_errors(rows, costs, found.largest[group], bits)
        assert found.errors(group) == pytest.approx(best)


def test_rows_that_do_not_fit_into_the_cache_together_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    groups, costs = uneven(7, 96).view(7, 3, 32), torch.rand(3, 32) + 0.1
    together = search(groups, costs, 4)
    monkeypatch.setattr(exl2, "_CACHED_WEIGHTS", 200)
    for one, other in zip(together, search(groups, costs, 4), strict=True):
        assert torch.equal(one, other)


def test_columns_that_matter_get_the_better_scale() -> None:
    """A lone large weight is clipped where it does not count, and kept where it does."""
    groups = weights(1, 64).view(1, 1, 64)
    groups[0, 0, 9] = 1.0
    counts = torch.full((1, 64), 1e-4).index_fill(1, torch.tensor([9]), 1e4)
    kept, clipped = (
        float((index + 1.0) ** 2 * unit) for index, unit in (search(groups, c, 4) for c in (counts, 1 / counts))
    )
    assert clipped < 0.8 * kept


@pytest.mark.parametrize("rung", RUNGS, ids=str)
@pytest.mark.parametrize("size", [1e-12, 1e-7, 1e3])
def test_scales_are_finite_and_above_zero(rung: Rung, size: float, device: torch.device) -> None:
    made = layer(uneven(4, 96) / 0.05 * size, device).rounded(rung.groups(96), polished=True)
    assert (made.linear.scale_max > 0).all()
    assert (made.linear.scales > 0).all()
    assert made.linear.scales.isfinite().all()
    assert made.linear.dequantize().isfinite().all()


@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_a_power_of_two_changes_nothing(rung: Rung) -> None:
    """Where float16 has all its digits; the order too stays as it was."""
    one, other = (layer(uneven(4, 96) * size).rounded(rung.groups(96), polished=True) for size in (2.0**6, 2.0**12))
    for field in ("codes", "indices", "order"):
        assert torch.equal(getattr(one.linear, field), getattr(other.linear, field))
    assert torch.equal(one.linear.scale_max * 2.0**6, other.linear.scale_max)
    torch.testing.assert_close(one.losses * 2.0**12, other.losses)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("size", [7e4, 1e30])
@pytest.mark.parametrize("bits", WIDTHS)
def test_a_weight_beyond_float16_is_refused(bits: int, size: float, sign: float) -> None:
    weight = uneven(3, 96)
    weight[1, 50] = sign * size
    with pytest.raises(HermetiqError, match="too large for float16"):
        layer(weight).rounded(((bits, 64), (bits, 32)))


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_large_weight_that_fits_is_read_as_a_number(bits: int) -> None:
    weight = uneven(3, 96)
    weight[1, 50] = 3e4
    linear = layer(weight).rounded(((bits, 64), (bits, 32)), polished=True).linear
    assert linear.dequantize().isfinite().all()


@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_rows_and_groups_of_zeros_stay_zero(rung: Rung, device: torch.device) -> None:
    """Without exchange between columns nothing is fed into them."""
    weight = uneven(4, 160).to(device)
    weight[1] = 0.0
    factor = factorize(statistics(torch.eye(160, device=device)), "static")
    order = torch.arange(160, device=device)
    groups = rung.groups(160)
    weight[:, -groups[-1][1] :] = 0.0
    (made,) = rounded([Part(weight, groups)], factor, order, torch.eye(160, device=device))
    assert not made.linear.dequantize()[weight == 0].any()
    assert made.losses[1] == 0
    assert (made.linear.scales > 0).all()
    nothing = rounded([Part(torch.zeros_like(weight), groups)], factor, order, None)[0].linear
    assert not nothing.dequantize().any()
    assert (nothing.scales > 0).all()


def test_a_row_of_zeros_stays_zero_among_correlated_inputs() -> None:
    weight = uneven(4, 160)
    weight[2] = 0.0
    made = layer(weight).rounded(MIXED.groups(160), polished=True)
    assert not made.linear.dequantize()[2].any()
    assert made.losses[2] == 0


@settings(max_examples=15, deadline=None)
@given(
    rung=st.sampled_from(RUNGS),
    out=st.integers(1, 4),
    columns=st.sampled_from([32, 64, 96, 160]),
    size=st.sampled_from([1e-7, 1e-3, 1.0, 1e3]),
    spread=st.floats(0, 8),
    seed=st.integers(0, 1000),
)
def test_whatever_the_weights_the_result_can_be_stored_and_polishing_never_hurts(
    rung: Rung, out: int, columns: int, size: float, spread: float, seed: int
) -> None:
    """Rows may differ by many powers of ten: the smallest then gets less than four bits can tell apart."""
    sizes = (spread * torch.randn(out, 1, generator=torch.Generator().manual_seed(seed))).exp().clamp(max=20)
    given = layer(size * weights(out, columns, seed=seed) * sizes, seed=seed)
    before, after = (given.rounded(rung.groups(columns), polished=polished) for polished in (False, True))
    assert (double(after.losses) <= double(before.losses) * (1 + 1e-5)).all()
    assert (after.linear.scales > 0).all()
    assert after.linear.scales.isfinite().all()
    assert after.linear.indices.max() <= 15
    assert (double(after.linear.codes) < 2 ** bits_of(after.linear)).all()
    assert after.linear.dequantize().isfinite().all()


def test_arguments_are_left_alone() -> None:
    given = layer(uneven(4, 96))
    kept = [value.clone() for value in (given.weight, given.factor.upper, given.order, given.hessian)]
    hessian = given.hessian
    rounded([Part(given.weight, MIXED.groups(96))], given.factor, given.order, hessian)
    for before, after in zip(kept, (given.weight, given.factor.upper, given.order, hessian), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("polished", [False, True])
def test_devices_agree(polished: bool, device: torch.device) -> None:
    """Sums are taken in another order elsewhere, so ties may fall the other way, and a few codes with them."""
    weight, groups = uneven(64, 256), MIXED.groups(256)
    here, there = (layer(weight, place) for place in ("cpu", device))
    # The same order: two columns may cost the same to the last digit but one.
    there = Layer(there.weight, there.given, there.factor, here.order.to(device))
    one, other = (given.rounded(groups, polished=polished) for given in (here, there))
    assert (one.linear.indices != other.linear.indices.cpu()).float().mean() < 1e-2
    assert other.losses.sum().item() == pytest.approx(one.losses.sum().item(), rel=0.01)
