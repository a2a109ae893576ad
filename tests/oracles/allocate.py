"""The best choice by trying every one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from hermetiq.quantize.allocate import Option


def totals(options: Mapping[str, Sequence[Option]], chosen: Mapping[str, int]) -> Option:
    """Bits and cost of all layers together."""
    taken = [options[layer][index] for layer, index in chosen.items()]
    return Option(sum(option.bits for option in taken), sum(option.cost for option in taken))


def best(options: Mapping[str, Sequence[Option]], budget: int) -> Option | None:
    """Bits and cost of the cheapest choice within the budget, the largest of several; None where nothing fits."""
    tried = (
        totals(options, dict(zip(options, indices, strict=True)))
        for indices in product(*(range(len(choices)) for choices in options.values()))
    )
    fitting = [total for total in tried if total.bits <= budget]
    return min(fitting, key=lambda total: (total.cost, -total.bits), default=None)
