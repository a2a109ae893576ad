"""A GGUF file before any weight is read: its header bytes, every tensor with its type and size, and the total.

Everything a dry run shows comes from here, and the writer holds the finished file against it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from math import prod

import numpy as np
from gguf import GGUF_DEFAULT_ALIGNMENT as ALIGNMENT
from gguf import GGUFWriter
from gguf.gguf_writer import WriterState

from hermetiq.model import ModelConfig
from hermetiq.quantize.ggml import row_bytes

from . import metadata, rope
from .metadata import Entry, GgufHeader
from .names import gguf_names
from .recipe import Choice, bits_per_weight, choose, is_quantized


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the file."""

    name: str
    source: str | None
    """Hugging Face name of what it is made from; None where `values` are the tensor."""
    shape: tuple[int, ...]
    """(rows, columns) or (columns,): torch's order, the reverse of what the file states."""
    choice: Choice
    values: tuple[float, ...] | None = None

    @property
    def weights(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size of the data, without the padding behind it."""
        *rows, columns = self.shape
        return prod(rows) * row_bytes(self.choice.type, columns)


@dataclass(frozen=True)
class GgufPlan:
    """One file to write; the same plan always makes the same bytes of the same weights."""

    recipe: str
    model: ModelConfig
    tensors: tuple[PlannedTensor, ...]
    header: bytes = field(repr=False)
    """Everything before the first tensor's data, padding included."""

    @property
    def size(self) -> int:
        """Bytes of the finished file."""
        return len(self.header) + sum(aligned(tensor.bytes) for tensor in self.tensors)

    def place(self, name: str) -> tuple[int, PlannedTensor]:
        """The tensor of this name, behind the number of bytes before its data.

        Raises:
            KeyError: the file has no such tensor.
        """
        start = len(self.header)
        for tensor in self.tensors:
            if tensor.name == name:
                return start, tensor
            start += aligned(tensor.bytes)
        raise KeyError(name)

    @property
    def weights(self) -> int:
        """Weights in all tensors."""
        return sum(tensor.weights for tensor in self.tensors)

    @property
    def quantized(self) -> bool:
        """Whether any tensor is."""
        return any(is_quantized(tensor.choice.type) for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data for each weight."""
        return 8 * sum(tensor.bytes for tensor in self.tensors) / self.weights

    @property
    def nominal_bits_per_weight(self) -> float:
        """What `bits_per_weight` would be if every row divided into the blocks the recipe wants (U26)."""
        return sum(bits_per_weight(tensor.choice.nominal) * tensor.weights for tensor in self.tensors) / self.weights

    @property
    def fallback_share(self) -> float:
        """Share of the weights whose tensor got another type than the recipe names, because of its shape."""
        return sum(tensor.weights for tensor in self.tensors if tensor.choice.fell_back) / self.weights


def plan(header: GgufHeader, recipe: str, *, imatrix: bool = False) -> GgufPlan:
    """Plan the file of one recipe (see `recipe.BASE`); with `imatrix`, one written with an importance matrix.

    Raises:
        Refusal, HermetiqError: see `metadata.entries` and `recipe.choose`.
    """
    tensors = tuple(_tensors(header.model, recipe, imatrix=imatrix))
    return GgufPlan(recipe, header.model, tensors, header_bytes(metadata.entries(header, recipe), tensors))


def aligned(size: int) -> int:
    """`size` with the padding that puts what follows on GGUF's alignment."""
    return size + -size % int(ALIGNMENT)


def header_bytes(entries: Iterable[Entry], tensors: Iterable[PlannedTensor]) -> bytes:
    """What stands before the tensor data, as the `gguf` package writes it, padded to the alignment.

    The first entry is `general.architecture`.
    """
    (_, arch, _), *rest = entries
    writer = GGUFWriter(None, arch)
    for key, value, kind in rest:
        writer.add_key_value(key, value, kind)
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, tensor.choice.type)
    buffer = BytesIO()
    writer.fout, writer.state = [buffer], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return buffer.getvalue().ljust(aligned(buffer.tell()), b"\0")


def _tensors(model: ModelConfig, recipe: str, *, imatrix: bool) -> Iterable[PlannedTensor]:
    names = gguf_names(model)
    for source, shape in model.expected_tensors().items():
        choice = choose(recipe, model, names[source], shape, imatrix=imatrix)
        yield PlannedTensor(names[source], source, shape, choice)
    factors = rope.factors(model)
    if factors:
        shape = (len(factors),)
        yield PlannedTensor(rope.FACTORS, None, shape, choose(recipe, model, rope.FACTORS, shape), factors)
