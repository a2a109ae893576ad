"""Recipes: one spelling each, and what each asks of a solver."""

from __future__ import annotations

from itertools import product

import pytest

from hermetiq.errors import HermetiqError
from hermetiq.quantize.spec import FORMATS, GGUF_RECIPES, LinearRecipe, Spec, parse

WIDTHS = ("g32", "g64", "g128", "g256", "channel")
GPTQ = [
    "".join(parts)
    for parts in product(
        ("2bit-", "3bit-", "4bit-", "8bit-"), WIDTHS, ("", "-asym"), ("", "-actorder", "-plain"), ("", "-v2")
    )
]
AWQ = ["4bit-g32", "4bit-g64", "4bit-g128"]
EVERY = [*(f"gguf:{name}" for name in GGUF_RECIPES), *(f"gptq:{name}" for name in GPTQ), *(f"awq:{n}" for n in AWQ)]


@pytest.mark.parametrize("form", [str, str.upper, str.lower])
def test_every_recipe_has_one_spelling(form: type[str]) -> None:
    for text in EVERY:
        assert str(parse(form(text))) == text


def test_defaults_are_left_out() -> None:
    for text in GPTQ:
        base, *options = text.replace("bit-", "bit_").split("-")
        spelled = [
            base.replace("_", "-"),
            "asym" if "asym" in options else "sym",
            next((order for order in ("actorder", "plain") if order in options), "static"),
            "v2" if "v2" in options else "v1",
        ]
        assert str(parse("gptq:" + "-".join(spelled))) == f"gptq:{text}"


def test_recipes_that_differ_ask_for_different_things() -> None:
    assert len({parse(f"gptq:{text}").linear for text in GPTQ}) == len(GPTQ)


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("gptq:4bit-g128", LinearRecipe(4, 128, symmetric=True, order="static", zero_offset=1)),
        ("gptq:3bit-channel-asym", LinearRecipe(3, None, symmetric=False, order="static", zero_offset=1)),
        ("gptq:2bit-g32-actorder-v2", LinearRecipe(2, 32, symmetric=True, order="actorder", zero_offset=0)),
        ("gptq:8bit-g256-asym-plain", LinearRecipe(8, 256, symmetric=False, order="plain", zero_offset=1)),
        ("awq:4bit-g64", LinearRecipe(4, 64, symmetric=False, order="static", zero_offset=0)),
    ],
)
def test_what_a_recipe_asks_for(text: str, recipe: LinearRecipe) -> None:
    assert parse(text).linear == recipe


@pytest.mark.parametrize(("size", "levels", "groups"), [(32, 16, 6), (64, 16, 3), (None, 16, 1)])
def test_levels_and_groups(size: int | None, levels: int, groups: int) -> None:
    recipe = LinearRecipe(4, size, symmetric=True, order="static", zero_offset=1)
    assert (recipe.levels, recipe.groups(192)) == (levels, groups)


@pytest.mark.parametrize(
    "recipe",
    ["", "5bit-g128", "4bit", "4bit-g16", "4bit-g128-", "4bit-g128-v1-asym", "4bit-g128-asym-asym", "x4bit-g128"],
)
@pytest.mark.parametrize("format", ["gptq", "awq", "gguf"])
def test_an_unknown_recipe_is_answered_with_those_that_exist(format: str, recipe: str) -> None:
    with pytest.raises(HermetiqError, match="unknown recipe") as caught:
        parse(f"{format}:{recipe}")
    assert FORMATS[format].grammar in caught.value.remedy


@pytest.mark.parametrize("text", ["", "exl9:4.0", "4bit-g128", ":4bit-g128", "gptq 4bit-g128"])
def test_an_unknown_format_is_answered_with_those_that_exist(text: str) -> None:
    with pytest.raises(HermetiqError, match="unknown format") as caught:
        parse(text)
    assert all(name in caught.value.remedy for name in FORMATS)


@pytest.mark.parametrize("recipe", ["4bit-g128-asym", "4bit-channel", "8bit-g128", "4bit-g256"])
def test_awq_has_no_options(recipe: str) -> None:
    with pytest.raises(HermetiqError, match="unknown recipe"):
        parse(f"awq:{recipe}")


def test_gguf_recipes_have_no_linear_recipe() -> None:
    with pytest.raises(KeyError):
        _ = Spec("gguf", "Q4_K_M").linear
