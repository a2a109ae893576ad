"""Writes safetensors folders of planned tensors, one tensor in memory at a time, all files whole or none.

The `safetensors` library writes a file from tensors that all exist. Here the header follows from the plan, the tensors
come one after another, and the files carry the suffix `.partial` until all of them are complete. Format: the README
of safetensors; the index is transformers' `model.safetensors.index.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from hermetiq.errors import HermetiqError

from .output import Output

STEM: Final = "model"
"""How the names of files begin, where a format has no other custom."""
INDEX: Final = "model.safetensors.index.json"
SHARD: Final = 5_000_000_000
"""Bytes of tensors in a file at most, as transformers has it, unless one tensor is larger."""
DTYPES: Final = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.int16: "I16",
}
"""Names of types in the header."""
_ALIGNMENT: Final = 8
"""Of the header's length, so that tensors can be mapped."""

Progress = Callable[[str, int], None]
"""Called with the name of a finished tensor and the bytes of all tensors written so far."""


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the folder, before anything is read."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def write_shards(
    folder: Path,
    planned: Sequence[PlannedTensor],
    load: Callable[[str], Tensor],
    *,
    stem: str = STEM,
    max_bytes: int = SHARD,
    on_tensor: Progress | None = None,
) -> dict[Path, str]:
    """Write the tensors in the order given, into one file, or several with their index.

    Returns the SHA-256 of each file, as hex. `load` is asked for each tensor once and in order; the same tensors always
    make the same bytes. Whatever interrupts the writing removes what was written; a killed process leaves `.partial`
    files only. `stem` is how the names of the files begin; the index has the one name that readers look for.

    Raises:
        HermetiqError: a tensor has another shape or type than planned; the disk is full or cannot be written.
        ValueError: two tensors of one name, or none at all.
    """
    if not planned or len({tensor.name for tensor in planned}) < len(planned):
        raise ValueError("each tensor is planned once, and there is at least one")
    parts = _parts(planned, stem, max_bytes)
    done = 0
    with ExitStack() as stack:
        outputs = []
        for file, part in parts.items():
            output = stack.enter_context(Output(folder / file))
            output.append(header(part))
            for tensor in part:
                output.append(_stored(tensor, load(tensor.name)))
                done += tensor.bytes
                if on_tensor:
                    on_tensor(tensor.name, done)
            output.finish(len(header(part)) + sum(tensor.bytes for tensor in part))
            outputs.append(output)
        if len(parts) > 1:
            output, index = stack.enter_context(Output(folder / INDEX)), _index(parts)
            output.append(index)
            output.finish(len(index))
            outputs.append(output)
        for output in outputs:
            output.publish()
        return {output.path: output.digest.hexdigest() for output in outputs}


def header(planned: Sequence[PlannedTensor]) -> bytes:
    """Everything before the first tensor's data: a length of eight bytes, then JSON padded with spaces."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in planned:
        offsets = [start, start + tensor.bytes]
        entries[tensor.name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        start += tensor.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _parts(planned: Sequence[PlannedTensor], stem: str, max_bytes: int) -> dict[str, list[PlannedTensor]]:
    """Consecutive tensors that go into one file together, by its name."""
    parts: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in planned:
        if parts[-1] and size + tensor.bytes > max_bytes:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += tensor.bytes
    if len(parts) == 1:
        return {f"{stem}.safetensors": parts[0]}
    return {f"{stem}-{i:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts, 1)}


def _index(parts: Mapping[str, Sequence[PlannedTensor]]) -> bytes:
    located = {tensor.name: file for file, part in parts.items() for tensor in part}
    total = sum(tensor.bytes for part in parts.values() for tensor in part)
    document = {"metadata": {"total_size": total}, "weight_map": located}
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _stored(planned: PlannedTensor, tensor: Tensor) -> memoryview:
    """The bytes of a tensor that is what was planned."""
    found = (tuple(tensor.shape), tensor.dtype)
    if found != (planned.shape, planned.dtype):
        expected = f"{planned.dtype} of shape {planned.shape}"
        raise HermetiqError(f"{found[1]} of shape {found[0]}, planned {expected}", where=planned.name)
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
