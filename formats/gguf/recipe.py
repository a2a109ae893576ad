"""Which ggml type each tensor of a model gets under a recipe such as Q4_K_M.

A recipe is a base type and a few places that deserve a better one: the head, `attn_v`, `ffn_down` and `attn_output`,
some of them only in some layers. llama.cpp's choice is the standard that people compare files by, so it is followed
exactly, and held against the real `llama_model_quantize` in `tests/formats/gguf/test_recipe.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import gguf
from gguf import GGMLQuantizationType as GgmlType

from hermetiq.errors import HermetiqError
from hermetiq.model import ModelConfig

from .names import architecture

_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q2_K")
_MIXES = ("Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_L", "Q3_K_M", "Q3_K_S")
BASE: Mapping[str, GgmlType] = {
    **{recipe: GgmlType[recipe] for recipe in _TYPES},
    **{recipe: GgmlType[recipe[:4]] for recipe in _MIXES},
}
"""The type that most tensors of a recipe get."""

FILE_TYPE: Mapping[str, int] = {
    recipe: int(gguf.LlamaFileType["ALL_F32" if recipe == "F32" else f"MOSTLY_{recipe}"]) for recipe in BASE
}
"""`general.file_type` of each recipe."""

FALLBACK: Mapping[GgmlType, GgmlType] = {
    GgmlType.Q2_K: GgmlType.Q4_0,
    GgmlType.Q3_K: GgmlType.Q4_0,
    GgmlType.IQ4_XS: GgmlType.IQ4_NL,
    GgmlType.Q4_K: GgmlType.Q5_0,
    GgmlType.Q5_K: GgmlType.Q5_1,
    GgmlType.Q6_K: GgmlType.Q8_0,
}
"""The type with blocks of 32 that stands in where a row does not divide by 256."""


@dataclass(frozen=True)
class Choice:
    """The `type` a tensor gets, and the `nominal` one that its shape may have prevented."""

    type: GgmlType
    nominal: GgmlType

    @property
    def fell_back(self) -> bool:
        """Whether the shape forced another type than the recipe names."""
        return self.type is not self.nominal


@dataclass(frozen=True)
class _Place:
    """Where a tensor stands, as far as the rules ask."""

    layer: int
    layers: int
    shared: bool
    """At least four query heads share each key and value head."""
    imatrix: bool
    """There is an importance matrix."""


_Rule = tuple[Callable[[_Place], bool], GgmlType]


def _always(place: _Place) -> bool:
    return True


def _shared(place: _Place) -> bool:
    return place.shared


def _first(layers: int) -> Callable[[_Place], bool]:
    return lambda place: place.layer < layers


def _first_part(parts: int) -> Callable[[_Place], bool]:
    return lambda place: place.layer < place.layers // parts


def _first_eighth(*, imatrix: bool) -> Callable[[_Place], bool]:
    """Those layers with an importance matrix, or those without."""
    return lambda place: place.imatrix is imatrix and place.layer < place.layers // 8


def _sensitive(place: _Place) -> bool:
    """The first and last eighth of the layers, and every third one between."""
    eighth = place.layers // 8
    return place.layer < eighth or place.layer >= 7 * place.layers // 8 or (place.layer - eighth) % 3 == 2


_MORE_BITS: dict[str, tuple[_Rule, ...]] = {
    "attn_v": ((_sensitive, GgmlType.Q6_K),),
    "ffn_down": ((_sensitive, GgmlType.Q6_K),),
}
_IQ4: dict[str, tuple[_Rule, ...]] = {
    "attn_v": ((_shared, GgmlType.Q5_K),),
    "ffn_down": ((_first_eighth(imatrix=False), GgmlType.Q5_K),),
}
_BETTER: Mapping[str, Mapping[str, tuple[_Rule, ...]]] = {
    "Q2_K": {
        "attn_v": ((_shared, GgmlType.Q4_K), (_always, GgmlType.Q3_K)),
        "ffn_down": ((_always, GgmlType.Q3_K),),
        "attn_output": ((_always, GgmlType.Q3_K),),
    },
    "Q3_K_M": {
        "attn_v": ((_first(2), GgmlType.Q5_K), (_always, GgmlType.Q4_K)),
        "ffn_down": ((_first_part(16), GgmlType.Q5_K), (_always, GgmlType.Q4_K)),
        "attn_output": ((_always, GgmlType.Q4_K),),
    },
    "Q3_K_L": {
        "attn_v": ((_always, GgmlType.Q5_K),),
        "ffn_down": ((_always, GgmlType.Q5_K),),
        "attn_output": ((_always, GgmlType.Q5_K),),
    },
    "Q4_K_S": {
        "attn_v": ((_first(4), GgmlType.Q5_K),),
        "ffn_down": ((_first_part(8), GgmlType.Q5_K),),
    },
    "Q4_0": {"ffn_down": ((_first_eighth(imatrix=True), GgmlType.Q4_1),)},
    "Q5_0": {"ffn_down": ((_first_eighth(imatrix=True), GgmlType.Q5_1),)},
    "Q4_K_M": _MORE_BITS,
    "Q5_K_M": _MORE_BITS,
    "IQ4_NL": _IQ4,
    "IQ4_XS": _IQ4,
}
"""By recipe and role: the better types, the first rule that holds wins; else the base type stays."""


def choose(
    recipe: str,
    config: ModelConfig,
    name: str,  # GGUF name
    shape: tuple[int, ...],  # (rows, columns) or (columns,)
    *,
    imatrix: bool = False,
) -> Choice:
    """The type that llama.cpp's quantizer gives this tensor.

    Args:
        imatrix: whether it is given an importance matrix; four recipes then choose `ffn_down` otherwise.

    Raises:
        HermetiqError: unknown recipe.
    """
    if recipe not in BASE:
        raise HermetiqError(f"unknown GGUF recipe {recipe!r}", remedy=f"one of {', '.join(BASE)}")
    if len(shape) < 2 or not name.endswith(".weight"):
        return Choice(GgmlType.F32, GgmlType.F32)
    nominal = BASE[recipe]
    if is_quantized(nominal):
        nominal = _head(nominal) if _is_head(config, name) else _body(recipe, config, name, imatrix=imatrix)
    return Choice(_fitting(nominal, columns=shape[-1]), nominal)


def bits_per_weight(type: GgmlType) -> float:
    """Bits of one weight, scales included."""
    block, size = gguf.GGML_QUANT_SIZES[type]
    return float(8 * size / block)


def is_quantized(type: GgmlType) -> bool:
    """Whether a block shares scales, so that a weight has fewer bits than any float."""
    return type not in (GgmlType.F32, GgmlType.F16, GgmlType.BF16)


def _is_head(config: ModelConfig, name: str) -> bool:
    """The tensor that makes logits: the head, or the embedding where that is the head too."""
    return name == ("token_embd.weight" if config.tied else "output.weight")


def _head(base: GgmlType) -> GgmlType:
    return base if base is GgmlType.Q8_0 else GgmlType.Q6_K


def _body(recipe: str, config: ModelConfig, name: str, *, imatrix: bool) -> GgmlType:
    """The type of a tensor that is not the head, whatever its shape."""
    if not name.startswith("blk."):
        return BASE[recipe]
    _, layer, role, _ = name.split(".")
    place = _Place(int(layer), config.layers, shared=config.heads // config.kv_heads >= 4, imatrix=imatrix)
    rules = _BETTER.get(recipe, {}).get(role, ())
    found = next((type for holds, type in rules if holds(place)), BASE[recipe])
    if role == "attn_v" and _is_70b(config) and found in (GgmlType.Q3_K, GgmlType.Q4_K):
        return GgmlType.Q5_K
    return found


def _is_70b(config: ModelConfig) -> bool:
    """llama.cpp knows this size by its layers, and gives its eight times smaller `attn_v` more bits."""
    grouped = config.heads != config.kv_heads
    return config.layers == 80 and (grouped if architecture(config) == "llama" else config.family == "qwen2")


def _fitting(type: GgmlType, *, columns: int) -> GgmlType:
    """The type itself, its stand-in, or F16: the first whose blocks divide a row."""
    candidates = (type, FALLBACK.get(type, type))
    return next((fit for fit in candidates if columns % gguf.GGML_QUANT_SIZES[fit][0] == 0), GgmlType.F16)
