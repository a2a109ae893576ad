"""An EXL2 folder, twice: before any weight is read, and once each layer's widths are chosen.

The first answers what the folder will cost and refuses what cannot be; only the second knows its tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

import torch

from hermetiq.errors import Finding, Refusal
from hermetiq.model import EMBEDDING, HEAD, ModelConfig, block_prefix
from hermetiq.quantize.ladder import LADDER, Rung, bit_budget, head_rung, stored_bits
from hermetiq.quantize.spec import Spec
from hermetiq.rules import finding

from . import exl2
from .linear_plan import TENSOR_PARALLEL, LinearPlan, Shape, linears, misfit, tensors
from .packed import Part

HEAD_MODULE: Final = HEAD.removesuffix(".weight")
STEM: Final = "output"
"""How the names of files begin; the reader takes all files, whatever their names."""
_SHARE: Final = 128
"""Features of an MLP that the reader gives to one GPU or another together. Heads it gives out one by one."""


@dataclass(frozen=True)
class MixedPlan:
    """One folder to write, of which the size is known and the widths are not."""

    spec: Spec
    model: ModelConfig
    unsplit: Mapping[int, tuple[str, ...]]
    """As of a `LinearPlan`."""

    @property
    def budget(self) -> int:
        """Bits that all layers of the blocks may take together."""
        return bit_budget(self.spec.mixed.bpw, sum(map(prod, linears(self.model).values())))

    @property
    def bytes(self) -> int:
        """Of all tensors, if the whole budget is spent."""
        packed = {*linears(self.model), HEAD_MODULE}
        plain = [shape for name, shape in _expected(self.model).items() if name.removesuffix(".weight") not in packed]
        head = _layout(self.head, _head_shape(self.model)).values()
        stored = sum(prod(part.shape) * part.dtype.itemsize for part in head)
        return self.budget // 8 + stored + 2 * sum(map(prod, plain))

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data for each weight of the model, embedding, head and norms included."""
        return 8 * self.bytes / self.model.weights

    @property
    def nominal_bits_per_weight(self) -> float:
        """Bits for each weight of the blocks' layers alone: the target."""
        return self.spec.mixed.bpw

    @property
    def head(self) -> Rung:
        """How the head is stored."""
        return head_rung(self.spec.mixed.head_bits)


def plan(model: ModelConfig, spec: Spec) -> MixedPlan:
    """Plan the folder of one spec.

    Raises:
        Refusal: `group-shape`, for each kind of layer that the format cannot hold; `bits-reach`, the target is below
            what its smallest widths take.
    """
    if misfits := tuple(_misfits(model)):
        raise Refusal(*misfits)
    planned = MixedPlan(spec, model, {gpus: _unsplit(model, gpus) for gpus in TENSOR_PARALLEL})
    layers = linears(model).values()
    least = sum(min(stored_bits(rung.groups(width), height) for rung in LADDER) for height, width in layers)
    if planned.budget < least:
        raise Refusal(
            finding(
                "bits-reach",
                file="config.json",
                found=f"{spec.mixed.bpw} bits per weight for layers of these shapes",
                # Rounded up to what a recipe can say, so that what is proposed here is planned.
                expected=f"{-(-1000 * least // sum(map(prod, layers))) / 1000:.3f} or more",
            )
        )
    return planned


def allocated(planned: MixedPlan, rungs: Mapping[str, Rung]) -> LinearPlan:
    """The exact plan, with the rung that each layer of the blocks got, by the name of its module.

    The head is quantized also where it is tied, and is then a matrix of its own.

    Raises:
        KeyError: a layer has no rung.
    """
    layouts = {module: _layout(rungs[module], shape) for module, shape in linears(planned.model).items()}
    layouts[HEAD_MODULE] = _layout(planned.head, _head_shape(planned.model))
    stored = tensors(_expected(planned.model), layouts, torch.float16)
    return LinearPlan(planned.spec, planned.model, tuple(stored), planned.unsplit, STEM)


def _layout(rung: Rung, shape: Shape) -> dict[str, Part]:
    return exl2.layout(shape, rung.groups(shape[1]))


def _head_shape(model: ModelConfig) -> Shape:
    return model.rows, model.hidden


def _expected(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The checkpoint's tensors with a head of their own."""
    expected = model.expected_tensors()
    return {**expected, HEAD: expected[EMBEDDING]}


def _misfits(model: ModelConfig) -> Iterator[Finding]:
    """`group-shape` for the layers of the first block, as all blocks are alike.

    Rows could be padded, as the head's are, but the reader counts heads and features without padding.
    """
    for name, (height, width) in linears(model).items():
        if not name.startswith(block_prefix(0)):
            return
        if width % exl2.COLUMNS or height % exl2.ROWS:
            expected = f"multiples of {(exl2.ROWS, exl2.COLUMNS)}, which the reader takes at a time"
            yield misfit(name, f"shape {(height, width)}", expected, ())
        if width > exl2.MOST_COLUMNS:
            yield misfit(name, f"rows of {width}", f"at most {exl2.MOST_COLUMNS}", ())


def _unsplit(model: ModelConfig, gpus: int) -> tuple[str, ...]:
    return ("gate_proj", "up_proj", "down_proj") if gpus > 1 and model.intermediate % _SHARE else ()
