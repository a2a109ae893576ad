"""A folder of packed layers before any weight is read: every tensor, its bytes, and how it splits over several GPUs.

A shape that the format cannot hold is refused here, hours before a runtime would stumble over it (U23, U26).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Final

import torch

from hermetiq.errors import Finding, Refusal
from hermetiq.model import EMBEDDING, HEAD, ModelConfig
from hermetiq.quantize.spec import LinearRecipe, Spec
from hermetiq.rules import finding

from . import awq, gptq
from .packed import Part
from .shards import STEM, PlannedTensor

TENSOR_PARALLEL: Final = (1, 2, 4, 8)
"""Numbers of GPUs that a plan answers for."""

Shape = tuple[int, int]
"""(out, in) of a linear layer."""


@dataclass(frozen=True)
class LinearPlan:
    """One folder to write."""

    spec: Spec
    model: ModelConfig
    tensors: tuple[PlannedTensor, ...]
    """In the order they are written."""
    unsplit: Mapping[int, tuple[str, ...]]
    """By the number of GPUs, the kinds of linear layer that cannot be split over so many; empty where all can."""
    stem: str = STEM
    """How the names of its files begin."""

    @cached_property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """In which each tensor is stored, by name."""
        return {tensor.name: tensor.dtype for tensor in self.tensors}

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data for each weight of the model, embedding and norms included."""
        return 8 * self.bytes / self.model.weights

    @property
    def nominal_bits_per_weight(self) -> float:
        """Bits for each weight of the blocks' quantized layers alone, with their scales, zero-points and order."""
        layers = linears(self.model)
        parts = [tensor for tensor in self.tensors if tensor.name.rpartition(".")[0] in layers]
        stored = sum(tensor.bytes for tensor in parts if not tensor.name.endswith(".bias"))
        return 8 * stored / sum(map(prod, layers.values()))


def plan(model: ModelConfig, spec: Spec, *, dtype: torch.dtype = torch.float16) -> LinearPlan:
    """Plan the folder of one spec.

    Args:
        dtype: of what is not quantized. Runtimes of AWQ know float16 only (U74).

    Raises:
        Refusal: `group-shape`, for each kind of layer that the recipe does not fit.
    """
    if misfits := tuple(_misfits(model, spec)):
        raise Refusal(*misfits)
    unsplit = {gpus: tuple(_unsplit(model, spec, gpus)) for gpus in TENSOR_PARALLEL}
    layouts = {module: layout(spec, shape) for module, shape in linears(model).items()}
    expected = model.expected_tensors()
    if _FORMATS[spec.format].explicit_head:
        expected.setdefault(HEAD, expected[EMBEDDING])
    return LinearPlan(spec, model, tuple(tensors(expected, layouts, dtype)), unsplit)


def linears(model: ModelConfig) -> dict[str, Shape]:
    """Shape of each quantized layer by the name of its module, in the order of the checkpoint."""
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in model.expected_tensors().items()
        if name.endswith("_proj.weight")
    }


def layout(spec: Spec, shape: Shape) -> dict[str, Part]:
    """The stored parts of a quantized layer, by the last part of their names."""
    return _FORMATS[spec.format].layout(shape, spec.linear)


def tensors(
    expected: Mapping[str, tuple[int, ...]], layouts: Mapping[str, Mapping[str, Part]], dtype: torch.dtype
) -> Iterator[PlannedTensor]:
    """The tensors of a folder in the checkpoint's order, packed layers by their parts.

    Args:
        expected: shapes of the checkpoint's tensors.
        layouts: the parts of each packed layer, by the name of its module.
        dtype: of what is not packed.
    """
    for name, shape in expected.items():
        module = name.removesuffix(".weight")
        if name != module and module in layouts:
            for part, stored in layouts[module].items():
                yield PlannedTensor(f"{module}.{part}", stored.shape, stored.dtype)
        else:
            yield PlannedTensor(name, shape, dtype)


def misfit(name: str, found: str, expected: str, fitting: Iterable[str]) -> Finding:
    """`group-shape` for one layer, with the recipes that fit all layers."""
    fits = ", ".join(fitting)
    repair = f"All layers of this model fit {fits}." if fits else "Nothing of this format fits this model: use a GGUF."
    return finding("group-shape", file="config.json", field=name, found=found, expected=expected, repair=repair)


@dataclass(frozen=True)
class _Format:
    layout: Callable[[Shape, LinearRecipe], dict[str, Part]]
    multiples: Shape
    """What (out, in) of a layer and of each GPU's share of it must be multiples of."""
    group_sizes: tuple[int, ...]
    """Group sizes that a recipe can name."""
    explicit_head: bool
    """The head is stored where it is tied, too: auto-gptq fills one that is not with random numbers."""


_FORMATS: Final = {
    "gptq": _Format(
        layout=lambda shape, recipe: gptq.layout(shape, recipe.bits, recipe.groups(shape[1])),
        multiples=(32, 32),  # Eight would do for 4 bits, but readers reserve words for whole runs of 32 codes.
        group_sizes=(32, 64, 128, 256),
        explicit_head=True,
    ),
    "awq": _Format(
        layout=lambda shape, recipe: awq.layout(shape, recipe.groups(shape[1])),
        multiples=(8, 1),
        group_sizes=(32, 64, 128),
        explicit_head=False,
    ),
}


def _misfits(model: ModelConfig, spec: Spec) -> Iterator[Finding]:
    """`group-shape` for the layers of the first block, as all blocks are alike."""
    format, recipe = _FORMATS[spec.format], spec.linear
    layers = {name: shape for name, shape in linears(model).items() if name.startswith("model.layers.0.")}
    widths = [width for _, width in layers.values()]
    sizes = [f"g{size}" for size in format.group_sizes if all(width % size == 0 for width in widths)]
    for name, (height, width) in layers.items():
        if recipe.group_size and width % recipe.group_size:
            yield misfit(name, f"rows of {width}", f"a multiple of the group size, {recipe.group_size}", sizes)
        if not _packs(spec, (height, width)):
            yield misfit(name, f"shape {(height, width)}", f"multiples of {format.multiples}, to fill whole words", ())


def _packs(spec: Spec, shape: Shape) -> bool:
    return all(size % multiple == 0 for size, multiple in zip(shape, _FORMATS[spec.format].multiples, strict=True))


def _unsplit(model: ModelConfig, spec: Spec, gpus: int) -> Iterator[str]:
    """Kinds of layer of which `gpus` cannot each hold a share that is a layer of the format by itself.

    Query heads and their outputs are split by heads; with fewer key heads than GPUs each GPU holds a copy of one.
    """
    recipe = spec.linear
    units = {"q": model.heads, "k": model.kv_heads, "v": model.kv_heads, "o": model.heads}
    for name, (height, width) in linears(model).items():
        if not name.startswith("model.layers.0."):
            return
        kind = name.rpartition(".")[2]
        letter = kind.removesuffix("_proj")
        count = units.get(letter, model.intermediate)
        shares = count if letter in ("k", "v") and gpus % count == 0 else gpus
        by_input = letter in ("o", "down")
        share = (height, width // shares) if by_input else (height // shares, width)
        # Groups that follow the order of activity are spread over all shares of a row (U25).
        grouped = (
            not by_input or shares == 1 or (recipe.order != "actorder" and share[1] % (recipe.group_size or 1) == 0)
        )
        if count % shares or not grouped or not _packs(spec, share):
            yield kind
