"""The settled gains against the exact Fisher information, and what they may and may not do."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from hermetiq.quantize import ending
from hermetiq.quantize.ending import LIMIT, Settled, settle
from tests.oracles import ending as oracle
from tests.oracles.ending import Floats

HIDDEN, VOCABULARY, TERMINATOR = 24, 50, 7
STORED = (torch.float16, torch.bfloat16, torch.float32)
DAMPING = 0.01
EXACT = 1e-3
"""Nats from the target that are near enough."""
SHIFTS = (-0.15, -0.03, 0.05, 0.12)


@dataclass(frozen=True)
class Given:
    gains: Tensor  # (hidden,)
    ends: Tensor  # (ends, hidden)
    others: Tensor  # (tokens, hidden)
    head: Tensor  # (vocabulary, hidden)


@cache
def given(stored: torch.dtype = torch.float32, *, ends: int = 60, others: int = 1500, dead: int = 0) -> Given:
    """Uneven, correlated channels; ends lean towards the terminator, and `dead` gains are zero."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    mixing = normal(HIDDEN, HIDDEN) * (0.7 * normal(HIDDEN)).exp()
    head = 1.5 * normal(VOCABULARY, HIDDEN)
    raw = normal(others + ends, HIDDEN) @ mixing / HIDDEN**0.5
    raw[others:] += 0.3 * head[TERMINATOR]
    gains = (0.4 * normal(HIDDEN)).exp()
    gains[5 : 5 + dead] = 0.0
    gains = gains.to(stored)
    states = raw / raw.square().mean(1, keepdim=True).sqrt() * gains.float()
    return Given(gains, states[others:], states[:others], head)


def settled(
    data: Given, shift: float, device: torch.device | str = "cpu", *, others: Tensor | None = None
) -> tuple[Settled, float]:
    """Gains for a target that is `shift` nats away, and that target."""
    target = mean(data, data.gains) + shift
    others = data.others if others is None else others
    gains, ends, others, head = (tensor.to(device) for tensor in (data.gains, data.ends, others, data.head))
    return settle(gains, ends, others, head, TERMINATOR, target), target


def double(tensor: Tensor) -> Floats:
    return np.asarray(tensor.cpu().double().numpy())


def change(data: Given, gains: Tensor) -> Floats:  # (hidden,)
    """The relative change of each gain, 0 for those that are zero."""
    old, new = double(data.gains), double(gains)
    return np.where(old == 0, 0.0, new / np.where(old == 0, 1.0, old) - 1)


def mean(data: Given, gains: Tensor) -> float:
    """The terminator's mean log-probability at the ends with these gains."""
    ends = double(data.ends) * (1 + change(data, gains))
    return oracle.mean_log_probability(ends, double(data.head), TERMINATOR)


@cache
def exact() -> Floats:  # (hidden,)
    """The oracle's direction for `given()`."""
    head, ends, others = (double(tensor) for tensor in (given().head, given().ends, given().others))
    return oracle.natural(oracle.gradient(ends, head, TERMINATOR), oracle.fisher(others, head), DAMPING)


def cost(data: Given, step: Floats) -> float:
    return oracle.divergence(double(data.others), step, double(data.head))


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_target_is_reached(shift: float, device: torch.device) -> None:
    result, target = settled(given(), shift, device)
    assert result.gains.device.type == device.type
    assert result.before == pytest.approx(target - shift, abs=1e-5)
    assert result.after == pytest.approx(target, abs=EXACT)


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("shift", SHIFTS)
def test_what_is_promised_is_what_the_stored_gains_give(
    stored: torch.dtype, shift: float, device: torch.device
) -> None:
    data = given(stored)
    result, target = settled(data, shift, device)
    assert result.gains.dtype == stored
    assert result.gains.shape == data.gains.shape
    assert result.after == pytest.approx(mean(data, result.gains), abs=1e-5)
    # A rounded gain is off by half its type's spacing at most; the errors of this many mostly cancel.
    assert abs(result.after - target) < max(EXACT, 2 * torch.finfo(stored).eps)


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("shift", [0.0, 1e-5, 1e-4, -1e-4, 1e-3, -1e-3])
def test_a_target_too_near_for_the_type_changes_nothing_for_the_worse(stored: torch.dtype, shift: float) -> None:
    data = given(stored)
    result, target = settled(data, shift)
    assert abs(result.after - target) <= abs(result.before - target)
    assert abs(mean(data, result.gains) - target) <= abs(shift) + 1e-6


def test_the_direction_is_that_of_the_exact_information(device: torch.device) -> None:
    result, _ = settled(given(), 0.12, device)
    step = change(given(), result.gains)
    assert step @ exact() / np.linalg.norm(step) / np.linalg.norm(exact()) > 0.98


@pytest.mark.parametrize("shift", SHIFTS)
def test_it_costs_what_the_least_step_costs_and_far_less_than_the_plain_gradient(shift: float) -> None:
    data = given()
    result, target = settled(data, shift)
    ends, head = double(data.ends), double(data.head)
    steepest = oracle.gradient(ends, head, TERMINATOR)
    least, plain = (
        cost(data, oracle.step_to(target, direction, ends, head, TERMINATOR)) for direction in (exact(), steepest)
    )
    spent = cost(data, change(data, result.gains))
    assert spent < 1.03 * least
    assert spent < 0.5 * plain


@pytest.mark.parametrize("shift", [-20.0, 20.0])
def test_a_target_out_of_reach_stops_at_the_limit(shift: float, device: torch.device) -> None:
    result, _ = settled(given(), shift, device)
    assert np.abs(change(given(), result.gains)).max() == pytest.approx(LIMIT, abs=1e-6)
    assert (result.after - result.before) * shift > 0


def test_a_target_above_the_top_of_the_mean_stops_there() -> None:
    """Two ends that pull one gain apart: the mean rises by 3 % of it, then falls."""
    gains, ends, head = torch.ones(1), torch.tensor([[3.0], [-0.233]]), torch.tensor([[1.0], [0.0]])
    result = settle(gains, ends, torch.ones(50, 1), head, 0, 0.0)
    steps = np.linspace(-LIMIT, LIMIT, 2001)
    means = [oracle.mean_log_probability(double(ends) * (1 + step), double(head), 0) for step in steps]
    assert 0.01 < steps[np.argmax(means)] < 0.04
    assert result.after == pytest.approx(max(means), abs=2e-6)


def test_gains_of_zero_stay_zero(device: torch.device) -> None:
    data = given(dead=3)
    result, target = settled(data, 0.12, device)
    assert not result.gains[5:8].any()
    assert result.gains[:5].all()
    assert result.after == pytest.approx(target, abs=EXACT)


def test_chunks_leave_no_token_out(monkeypatch: pytest.MonkeyPatch) -> None:
    data = given()
    whole, target = settled(data, 0.12)
    for chunk in (59, 7):
        monkeypatch.setattr(ending, "_CHUNK", chunk)
        split, _ = settled(data, 0.12)
        torch.testing.assert_close(split.gains, whole.gains, rtol=1e-4, atol=0)
        assert split.before == pytest.approx(whole.before, abs=1e-5)
        assert split.after == pytest.approx(target, abs=EXACT)


def test_the_arguments_are_left_alone_and_the_result_is_always_the_same(device: torch.device) -> None:
    data = given(torch.float16)
    copies = [getattr(data, field.name).clone() for field in fields(data)]
    torch.manual_seed(1)
    first, _ = settled(data, 0.12, device)
    torch.manual_seed(2)
    second, _ = settled(data, 0.12, device)
    for field, copy in zip(fields(data), copies, strict=True):
        assert torch.equal(getattr(data, field.name), copy)
    assert torch.equal(first.gains, second.gains)
    assert (first.before, first.after) == (second.before, second.after)
    assert not torch.equal(first.gains.cpu(), data.gains)


def test_ends_are_needed() -> None:
    data = given()
    with pytest.raises(ValueError, match="no ends"):
        settle(data.gains, data.ends[:0], data.others, data.head, TERMINATOR, -1.0)


@pytest.mark.parametrize(
    "others",
    [
        torch.empty(0, HIDDEN),
        torch.full((3, HIDDEN), torch.nan),
        torch.full((3, HIDDEN), torch.inf),
        torch.zeros(3, 24),
    ],
    ids=["none", "nan", "infinite", "zero"],
)
def test_others_that_say_nothing_leave_the_gains(others: Tensor, device: torch.device) -> None:
    result, _ = settled(given(), 0.12, device, others=others)
    assert torch.equal(result.gains.cpu(), given().gains)
    assert result.after == result.before


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0])
def test_ends_that_say_nothing_leave_the_gains(value: float) -> None:
    data = given()
    result = settle(data.gains, torch.full((3, HIDDEN), value), data.others, data.head, TERMINATOR, -1.0)
    assert torch.equal(result.gains, data.gains)
