"""Writes GGUF files straight from a checkpoint's tensors, several files from one read, each whole or not at all.

Tensors are read one ahead of the work and cut into slices of rows; threads turn a slice into the blocks of every type
that some file wants, and the slices are appended in order. So no tensor ever exists as a whole in float32, and memory
does not grow with the model. Files carry the suffix `.partial` until all of them are complete.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from gguf import GGMLQuantizationType as GgmlType
from numpy.typing import NDArray

from hermetiq.errors import HermetiqError, Refusal
from hermetiq.formats.output import Output
from hermetiq.model import ModelConfig
from hermetiq.quantize import ggml
from hermetiq.quantize.ggml import Blocks, Float32, Ggml, NonFinite, OutOfRange
from hermetiq.rules import finding

from .layout import GgufPlan, PlannedTensor, aligned
from .names import Order, row_order


class StoredTensor(Protocol):
    """What the writer asks of a tensor before it is read."""

    @property
    def file(self) -> str: ...


class TensorSource(Protocol):
    """Where weights come from; a `Checkpoint` is one."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]: ...

    def load(self, name: str) -> torch.Tensor: ...


Progress = Callable[[str, int], None]
"""Called with the GGUF name of a finished tensor and the bytes written so far to all files."""
Revise = Callable[[Path, Path], Mapping[str, Float32]]
"""Called with the path of a file to be and where it lies complete: tensors of type F32, by their GGUF names, that take
the place of what it holds."""


def write(
    plans: Mapping[Path, GgufPlan],
    source: TensorSource,
    *,
    threads: int,
    imatrix: Mapping[str, Float32] | None = None,
    on_tensor: Progress | None = None,
    revise: Revise | None = None,
    library: Ggml | None = None,
) -> dict[Path, str]:
    """Write every planned file, from plans of one model, reading each tensor of `source` once.

    Returns the SHA-256 of each file, as hex.

    `source.load` runs on one thread of its own, one tensor ahead, and must give float32, float16 or bfloat16.
    The files appear under their names when all are complete. Whatever interrupts the writing, Ctrl-C included, removes
    what was written; a killed process leaves `.partial` files only. The bytes do not depend on `threads`.

    Args:
        imatrix: importance of each input column, (in,), by the Hugging Face name of the weight.
        revise: has the last word on a tensor of each file, which it may read.

    Raises:
        Refusal: `weight-nan`, a tensor holds NaN or infinity; `f16-overflow`, a weight is too large for a type, or
            F16 loses a row; `source-incomplete`, it has another shape than planned.
        HermetiqError: the disk is full or the folder cannot be written; no ggml.
        ValueError: the plans are of different models; a revised tensor is not of type F32, or has another shape.
    """
    first = next(iter(plans.values()))
    if any(plan.model != first.model for plan in plans.values()):
        raise ValueError("the plans are of different models")
    work = _Work(first.model, source, library or ggml.load(), imatrix or {})
    with ExitStack() as stack:
        outputs = [stack.enter_context(Output(path)) for path in plans]
        for output, plan in zip(outputs, plans.values(), strict=True):
            output.append(plan.header)
        tensors = list(zip(*(plan.tensors for plan in plans.values()), strict=True))
        for slice in stack.enter_context(closing(work.slices(tensors, threads))):
            for output, tensor in zip(outputs, slice.planned, strict=True):
                output.append(slice.blocks[tensor.choice.type].data)
                if slice.last:
                    output.append(bytes(aligned(output.written) - output.written))
            if slice.last and on_tensor:
                on_tensor(slice.planned[0].name, sum(output.written for output in outputs))
        for output, plan in zip(outputs, plans.values(), strict=True):
            output.finish(plan.size)
            for name, values in (revise(output.path, output.at) if revise else {}).items():
                start, tensor = plan.place(name)
                if tensor.choice.type is not GgmlType.F32 or values.shape != tensor.shape:
                    raise ValueError(f"{name} is {tensor.choice.type.name} of shape {tensor.shape}")
                output.revise(start, values.astype(np.float32).tobytes())
        for output in outputs:
            output.publish()
        return {output.path: output.digest.hexdigest() for output in outputs}


@dataclass(frozen=True)
class _Slice:
    """Some rows of one tensor, in every type that a file wants."""

    planned: tuple[PlannedTensor, ...]
    """The tensor as each plan has it."""
    blocks: Mapping[GgmlType, Blocks]
    last: bool


@dataclass(frozen=True)
class _Work:
    """From planned tensors to quantized slices."""

    model: ModelConfig
    source: TensorSource
    library: Ggml
    imatrix: Mapping[str, Float32]

    def slices(self, tensors: list[tuple[PlannedTensor, ...]], threads: int) -> Generator[_Slice, None, None]:
        """All slices of all tensors, in order."""
        return ggml.ordered(self._jobs(tensors), threads=threads)

    def _jobs(self, tensors: list[tuple[PlannedTensor, ...]]) -> Iterator[Callable[[], _Slice]]:
        for planned, weight in zip(tensors, _ahead(tensors, self._load), strict=True):
            order = row_order(self.model, planned[0].source or "")
            for start, stop in ggml.chunks(*weight.shape):
                yield partial(self._quantize, planned, weight, order, start, stop)

    def _load(self, planned: tuple[PlannedTensor, ...]) -> NDArray[Any]:  # (rows, columns)
        """The stored tensor in a form that `ggml.float32` reads; a vector is a matrix of one column."""
        tensor, *_ = planned
        if tensor.source is None:
            return np.asarray(tensor.values, np.float32).reshape(-1, 1)
        weight = self.source.load(tensor.source)
        if tuple(weight.shape) != tensor.shape:
            raise Refusal(
                finding(
                    "source-incomplete",
                    file=self.source.tensors[tensor.source].file,
                    field=tensor.source,
                    found=f"shape {tuple(weight.shape)}",
                    expected=f"shape {tensor.shape}",
                )
            )
        return _array(weight, tensor.source).reshape(len(weight), -1)

    def _quantize(
        self,
        planned: tuple[PlannedTensor, ...],
        weight: NDArray[Any],  # (rows, columns)
        order: Order | None,  # (rows,)
        start: int,
        stop: int,
    ) -> _Slice:
        rows = ggml.float32(weight[start:stop] if order is None else weight[order[start:stop]])
        types = {tensor.choice.type: None for tensor in planned}
        name = planned[0].source or planned[0].name
        if GgmlType.F16 in types and ggml.vanishes(rows):
            raise self._narrow(name, "a row of nothing but values that F16 rounds to zero")
        try:
            blocks = self.library.blocks(rows, types, imatrix=self.imatrix.get(name))
        except NonFinite as error:
            file = self.source.tensors[name].file
            found = finding("weight-nan", file=file, field=name, found="NaN or infinity", expected="finite weights")
            raise Refusal(found) from error
        except OutOfRange as error:
            raise self._narrow(name, error.what) from error
        return _Slice(planned, blocks, last=stop == len(weight))

    def _narrow(self, name: str, found: str) -> Refusal:
        file = self.source.tensors[name].file
        expected = "weights that the type can hold"
        return Refusal(finding("f16-overflow", file=file, field=name, found=found, expected=expected, severity="error"))


def _array(weight: torch.Tensor, name: str) -> NDArray[Any]:
    """The tensor's memory as numpy sees it; bfloat16, which numpy lacks, as its bits."""
    weight = weight.detach().contiguous()
    if weight.dtype is torch.bfloat16:
        return weight.view(torch.uint16).numpy()
    if weight.dtype in (torch.float32, torch.float16):
        return weight.numpy()
    raise HermetiqError(
        f"cannot read weights of type {weight.dtype}", where=name, remedy="store float32, float16 or bfloat16"
    )


def _ahead(
    tensors: list[tuple[PlannedTensor, ...]], load: Callable[[tuple[PlannedTensor, ...]], NDArray[Any]]
) -> Iterator[NDArray[Any]]:
    """Load each tensor while the one before is worked on."""
    with ThreadPoolExecutor(1, thread_name_prefix="load") as reader:
        coming = reader.submit(load, tensors[0])
        for following in (*tensors[1:], None):
            weight = coming.result()
            if following:
                coming = reader.submit(load, following)
            yield weight
