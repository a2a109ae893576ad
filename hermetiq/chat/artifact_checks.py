"""The rules that hold a quantized artifact against what it says it is, by the types of its tensors alone.

Tools that find no layer to quantize, or no row that their blocks fit, say so in a log at most: the file gets its name
all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Any, Final

from hermetiq.chat.subject import Subject
from hermetiq.checkpoint.base import TensorInfo
from hermetiq.checkpoint.folder import FLOATS
from hermetiq.checkpoint.shards import listed
from hermetiq.errors import Finding
from hermetiq.rules import finding

_SHARE: Final = 0.1
"""Of the weights in the blocks' linear layers: less may well be meant, a sensitive layer or two kept whole."""
_BLOCK = 256
"""Values in a block of a K-quant."""
_STRICT = ("gptq", "awq")
"""By `quant_method`: layouts whose loaders expect every layer packed that no list of the configuration excepts."""


def not_quantized(subject: Subject) -> Iterator[Finding]:
    """Linear layers of the blocks that an artifact left in 16 bits or more."""
    linears = _linears(subject)
    whole = {name: info for name, info in linears.items() if info.dtype in FLOATS}
    recipe = getattr(subject.checkpoint, "recipe", None)
    claims = recipe is not None and _base(recipe) not in FLOATS
    if not claims and len(whole) == len(linears):
        return
    section = subject.checkpoint.documents.get("config.json", {}).get("quantization_config")
    section = section if isinstance(section, Mapping) else {}
    left = {name: info for name, info in whole.items() if not _excepted(name, section)}
    share = _weights(left.values()) / _weights(linears.values())
    if share > (0 if section.get("quant_method") in _STRICT else _SHARE):
        first = next(iter(left.values()))
        yield finding(
            "not-quantized",
            file=first.file,
            found=f"{share:.0%} of the linear weights in {first.dtype}: {listed(left)}",
            expected="every linear layer quantized that the configuration does not except",
        )


def kquant_shape(subject: Subject) -> Iterator[Finding]:
    """A K-quant of a model whose rows its blocks do not divide, so that most of it is something else."""
    recipe = getattr(subject.checkpoint, "recipe", None)
    if recipe is None:
        return
    # Imported late, and needed for a .gguf alone: its writer brings torch along.
    from hermetiq.formats.gguf.recipe import BASE, FALLBACK

    if BASE[recipe] not in FALLBACK:
        return
    linears, stand_ins = _linears(subject), {kind.name for kind in FALLBACK.values()}
    fallen = [info for info in linears.values() if info.dtype in stand_ins and info.shape[1] % _BLOCK]
    share = _weights(fallen) / _weights(linears.values())
    if share > _SHARE:
        kinds, rows = sorted({info.dtype for info in fallen}), sorted({info.shape[1] for info in fallen})
        stored = f"{', '.join(kinds)}: rows of {listed(map(str, rows))}"
        yield finding(
            "kquant-shape",
            file=fallen[0].file,
            field="general.file_type",
            found=f"{recipe}, and {share:.0%} of the linear weights in {stored}",
            expected=f"rows that {_BLOCK} divides",
        )


def _base(recipe: str) -> str | None:
    """The type that most of a .gguf of this recipe has."""
    from hermetiq.formats.gguf.recipe import BASE

    base = BASE.get(recipe)
    return None if base is None else str(base.name)


def _linears(subject: Subject) -> Mapping[str, TensorInfo]:
    """The matrices of the blocks; embedding and head have their own types in every recipe."""
    stored = subject.checkpoint.tensors
    return {name: info for name, info in stored.items() if ".layers." in name and len(info.shape) == 2}


def _weights(tensors: Iterable[TensorInfo]) -> int:
    return sum(prod(info.shape) for info in tensors)


def _excepted(name: str, section: Mapping[str, Any]) -> bool:
    """Whether the configuration says that this layer is not packed, in the words of AWQ or of GPTQ."""
    kept, chosen = (_texts(section.get(key)) for key in ("modules_to_not_convert", "modules_in_block_to_quantize"))
    return any(part in name for part in kept) or (
        bool(chosen) and not any(f".{part}.weight" in name for part in chosen)
    )


def _texts(value: Any) -> list[str]:
    """Names in a list, or in lists inside it."""
    entries = value if isinstance(value, list) else []
    flat = [part for entry in entries for part in (entry if isinstance(entry, list) else [entry])]
    return [part for part in flat if isinstance(part, str) and part]
