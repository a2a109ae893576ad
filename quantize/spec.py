"""What to make, in one grammar: `format:recipe`, for instance `gguf:Q4_K_M`.

One table holds every format with its recipes, so that the command line, the manifest and the recipes agree by
construction.
"""

from __future__ import annotations

from dataclasses import dataclass

from hermetiq.errors import HermetiqError

GGUF_RECIPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0"),
    *("Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"),
)
FORMATS: dict[str, tuple[str, ...]] = {"gguf": GGUF_RECIPES}


@dataclass(frozen=True, order=True)
class Spec:
    """One artifact to make: a `format` and one of its recipes."""

    format: str
    recipe: str

    def __str__(self) -> str:
        return f"{self.format}:{self.recipe}"


def parse(text: str) -> Spec:
    """Read a spec; names are not case-sensitive.

    Raises:
        HermetiqError: unknown format or recipe, with the ones that exist.
    """
    name, _, recipe = text.partition(":")
    recipes = {known.lower(): known for known in FORMATS.get(name.lower(), ())}
    if not recipes:
        raise HermetiqError(f"unknown format in {text!r}", remedy="write FORMAT:RECIPE; formats: " + ", ".join(FORMATS))
    if recipe.lower() not in recipes:
        raise HermetiqError(
            f"unknown recipe in {text!r}", remedy=f"{name.lower()} recipes: {', '.join(recipes.values())}"
        )
    return Spec(name.lower(), recipes[recipe.lower()])
