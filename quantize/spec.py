"""What to make, in one grammar: `format:recipe`, for instance `gguf:Q4_K_M` or `gptq:4bit-g64`.

One table holds every format with its way to read recipes, so that the command line, the manifest and the recipes agree
by construction. A recipe has one spelling: defaults are left out, and names of folders and files are made from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from hermetiq.errors import HermetiqError

GGUF_RECIPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0"),
    *("Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"),
)
Order = Literal["static", "actorder", "plain"]
"""Which columns are rounded first. `static`: the most active, groups left in place; `actorder`: the most active, and
groups follow that order (`desc_act`, dearer at inference); `plain`: from left to right."""


@dataclass(frozen=True)
class LinearRecipe:
    """How the weights of a linear layer are rounded: integer codes on a grid per row and group of input columns."""

    bits: int
    group_size: int | None
    """Input columns that share a scale; None: the whole row (`channel`)."""
    symmetric: bool
    """The zero-point is the middle of the codes; otherwise each group has its own."""
    order: Order
    zero_offset: int
    """What the format takes off a zero-point before storing it (GPTQ v1: 1, so zero-point 0 cannot be stored)."""

    @property
    def levels(self) -> int:
        """Number of codes."""
        return 1 << self.bits

    def groups(self, columns: int) -> int:
        """Groups in a row of `columns`."""
        return columns // (self.group_size or columns)


@dataclass(frozen=True)
class MixedRecipe:
    """EXL2: each linear gets the widths that serve the model best within a mean size."""

    bpw: float
    """Stored bits per weight of all linears of the blocks together, hit from below."""
    head_bits: int
    """Bits of a code of the head, which is counted apart."""


@dataclass(frozen=True, order=True)
class Spec:
    """One artifact to make: a `format` and one of its recipes, in its one spelling."""

    format: str
    recipe: str

    def __str__(self) -> str:
        return f"{self.format}:{self.recipe}"

    @property
    def linear(self) -> LinearRecipe:
        """The recipe of a format that rounds linears on integer grids.

        Raises:
            KeyError: the format has none (GGUF).
        """
        return _LINEAR[self.format](self.recipe)

    @property
    def mixed(self) -> MixedRecipe:
        """The recipe of the format that mixes widths.

        Raises:
            KeyError: the format does not (all but EXL2).
        """
        return _MIXED[self.format](self.recipe)


def parse(text: str) -> Spec:
    """Read a spec; names are not case-sensitive.

    Raises:
        HermetiqError: unknown format or recipe, with the ones that exist.
    """
    name, _, recipe = text.partition(":")
    format = FORMATS.get(name.lower())
    if format is None:
        raise HermetiqError(f"unknown format in {text!r}", remedy="write FORMAT:RECIPE; formats: " + ", ".join(FORMATS))
    spelled = format.canonical(recipe)
    if spelled is None:
        raise HermetiqError(f"unknown recipe in {text!r}", remedy=f"{name.lower()} recipes: {format.grammar}")
    return Spec(name.lower(), spelled)


@dataclass(frozen=True)
class _Format:
    canonical: Callable[[str], str | None]
    """A recipe in its one spelling; None where it is none."""
    grammar: str


def _gguf(recipe: str) -> str | None:
    return {known.lower(): known for known in GGUF_RECIPES}.get(recipe.lower())


_GPTQ = re.compile(r"([2348])bit-(?:g(32|64|128|256)|channel)(-sym|-asym)?(-static|-actorder|-plain)?(-v1|-v2)?")
_AWQ = re.compile(r"4bit-g(32|64|128)")


_EXL2 = re.compile(r"(\d(?:\.\d{1,3})?)bpw(-h6|-h8)?")
SMALLEST_BPW, LARGEST_BPW = 2.1, 8.0
"""Mean sizes that EXL2's widths of 2 to 8 bits can be mixed to."""


def _gptq(recipe: str) -> str | None:
    found = _GPTQ.fullmatch(recipe.lower())
    if not found:
        return None
    bits, group, *options = found.groups()
    spelled = [option for option in options if option and option not in ("-sym", "-static", "-v1")]
    return f"{bits}bit-{f'g{group}' if group else 'channel'}" + "".join(spelled)


def _awq(recipe: str) -> str | None:
    return recipe.lower() if _AWQ.fullmatch(recipe.lower()) else None


def _exl2(recipe: str) -> str | None:
    found = _EXL2.fullmatch(recipe.lower())
    if not found or not SMALLEST_BPW <= float(found[1]) <= LARGEST_BPW:
        return None
    return f"{float(found[1])}bpw{'-h8' if found[2] == '-h8' else ''}"


@cache
def _gptq_recipe(recipe: str) -> LinearRecipe:
    found = _GPTQ.fullmatch(recipe)
    assert found, recipe
    bits, group, grid, order, version = found.groups()
    return LinearRecipe(
        bits=int(bits),
        group_size=int(group) if group else None,
        symmetric=grid != "-asym",
        order=_ORDERS[order or "-static"],
        zero_offset=0 if version == "-v2" else 1,
    )


@cache
def _awq_recipe(recipe: str) -> LinearRecipe:
    found = _AWQ.fullmatch(recipe)
    assert found, recipe
    return LinearRecipe(bits=4, group_size=int(found[1]), symmetric=False, order="static", zero_offset=0)


@cache
def _exl2_recipe(recipe: str) -> MixedRecipe:
    found = _EXL2.fullmatch(recipe)
    assert found, recipe
    return MixedRecipe(bpw=float(found[1]), head_bits=8 if found[2] == "-h8" else 6)


_ORDERS: dict[str, Order] = {"-static": "static", "-actorder": "actorder", "-plain": "plain"}
FORMATS: dict[str, _Format] = {
    "gguf": _Format(_gguf, ", ".join(GGUF_RECIPES)),
    "gptq": _Format(
        _gptq,
        "{2,3,4,8}bit-g{32,64,128,256} or -channel, then -asym (default -sym), -actorder or -plain (default -static), "
        "-v2 (default -v1)",
    ),
    "awq": _Format(_awq, "4bit-g{32,64,128}"),
    "exl2": _Format(_exl2, f"{SMALLEST_BPW}bpw to {LARGEST_BPW}bpw, three decimals at most, then -h8 (default -h6)"),
}
_LINEAR: dict[str, Callable[[str], LinearRecipe]] = {"gptq": _gptq_recipe, "awq": _awq_recipe}
_MIXED: dict[str, Callable[[str], MixedRecipe]] = {"exl2": _exl2_recipe}
