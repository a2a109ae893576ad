"""The allocator against trying every choice, its bound where sizes are rounded, and what a larger budget may do."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from math import inf, prod
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermetiq.errors import HermetiqError
from hermetiq.quantize import allocate as allocator
from hermetiq.quantize.allocate import STATES, Option, allocate
from hermetiq.quantize.ladder import LADDER, stored_bits
from tests.oracles import allocate as oracle
from tests.oracles.allocate import totals

Options = Mapping[str, Sequence[Option]]
# Whole costs add up to the same sum in any order, so equal means equal.
CHOICES = st.lists(
    st.builds(Option, bits=st.integers(0, 40), cost=st.integers(0, 30).map(float)), min_size=1, max_size=4
)
SMALL = st.lists(CHOICES, min_size=1, max_size=5).map(lambda layers: {str(key): of for key, of in enumerate(layers)})


@settings(max_examples=300, deadline=None)
@given(options=SMALL, budget=st.integers(0, 220), scale=st.sampled_from([1, 7, 1 << 20]))
def test_takes_what_trying_every_choice_finds(options: Options, budget: int, scale: int) -> None:
    options = {
        layer: [Option(option.bits * scale, option.cost) for option in choices] for layer, choices in options.items()
    }
    expected = oracle.best(options, budget * scale + scale // 2)
    if expected is None:
        with pytest.raises(HermetiqError, match="allow more bits"):
            allocate(options, budget * scale + scale // 2)
    else:
        assert totals(options, allocate(options, budget * scale + scale // 2)) == expected


@settings(max_examples=100, deadline=None)
@given(options=SMALL, budget=st.integers(1, 220), states=st.integers(4, 30))
def test_rounded_sizes_cost_no_more_than_the_bound_says(options: Options, budget: int, states: int) -> None:
    least = sum(min(option.bits for option in choices) for choices in options.values())
    most = sum(max(option.bits for option in choices) for choices in options.values())
    if least > budget:
        return
    with patch.object(allocator, "STATES", states):
        found = totals(options, allocate(options, budget))
    unit = -(-(most - least) // states)
    ideal = oracle.best(options, budget - unit * len(options) * 3 // 2)
    assert found.bits <= budget
    assert ideal is None or found.cost <= ideal.cost


@settings(max_examples=50, deadline=None)
@given(options=SMALL, states=st.sampled_from([8, STATES]))
def test_a_larger_budget_never_costs_more(options: Options, states: int) -> None:
    least = sum(min(option.bits for option in choices) for choices in options.values())
    before = inf
    with patch.object(allocator, "STATES", states):
        for budget in range(least, least + 60):
            cost = totals(options, allocate(options, budget)).cost
            assert cost <= before
            before = cost


def test_a_whole_model_is_allocated_close_to_its_bound() -> None:
    """28 layers with the ladder's real sizes; a Lagrangian gives a cost that no choice within the budget is below."""
    draw = random.Random(4)
    shapes = {f"{block}.{part}": (1024 << part % 3, 1024 << part // 3) for block in range(4) for part in range(7)}
    options = {layer: ladder(*shape, weight=draw.lognormvariate(0, 1)) for layer, shape in shapes.items()}
    for bpw in (2.5, 4.65, 7.5):
        budget = int(bpw * sum(map(prod, shapes.values())))
        chosen = allocate(options, budget)
        found = totals(options, chosen)
        assert chosen == allocate(options, budget)
        assert 0.9995 * budget < found.bits <= budget
        assert bound(options, budget) <= found.cost < 1.01 * bound(options, budget)


def ladder(out: int, columns: int, *, weight: float) -> list[Option]:
    """A layer whose damage falls fourfold with each bit."""
    sizes = [stored_bits(rung.groups(columns), out) for rung in LADDER]
    return [Option(size, weight * out * columns * 4.0 ** (-size / (out * columns))) for size in sizes]


def bound(options: Options, budget: int) -> float:
    """The largest of the lower bounds that prices per bit give."""
    prices = [10 ** (exponent / 100) for exponent in range(-700, 200)]
    return max(
        sum(min(option.cost + price * option.bits for option in choices) for choices in options.values())
        - price * budget
        for price in prices
    )


def test_bits_that_buy_nothing_are_spent_all_the_same() -> None:
    assert allocate({"a": [Option(3, 0.0), Option(5, 0.0), Option(4, 0.0)]}, 5) == {"a": 1}


def test_nothing_to_allocate() -> None:
    assert allocate({}, 0) == {}


def test_a_budget_below_the_smallest_choices_is_refused() -> None:
    with pytest.raises(HermetiqError, match="2 layers take 7 bits, 6 are allowed"):
        allocate({"a": [Option(3, 1.0), Option(9, 0.0)], "b": [Option(4, 1.0)]}, 6)
