"""The weights of a repaired folder: each file as it was, byte for byte, unless a row was mended or a LoRA merged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from hermetiq.checkpoint.adapter import AdapterCheckpoint
from hermetiq.checkpoint.shards import INDEX, SINGLE, listed, load_tensor, read_header
from hermetiq.companions import json_bytes
from hermetiq.errors import HermetiqError, Refusal
from hermetiq.formats.output import Output, write_files
from hermetiq.formats.shards import DTYPES, PlannedTensor, write_shards
from hermetiq.progress import Ticker
from hermetiq.repair.change import Change
from hermetiq.repair.mended import MendedCheckpoint

_CHUNK: Final = 1 << 24


def write_weights(folder: Path, checkpoint: MendedCheckpoint, tick: Ticker) -> None:
    """Write every file of tensors, and the index where the source has one, under the names that they have.

    Where an adapter was merged, all are written anew.

    Raises:
        HermetiqError: the disk is full or the folder cannot be written; a file to mend has tensors of float64.
        Refusal: `source-incomplete`, a file has changed since it was opened.
    """
    if isinstance(checkpoint.source, AdapterCheckpoint):
        _write_merged(folder, checkpoint, checkpoint.source, tick)
        return
    files = sorted({info.file for info in checkpoint.tensors.values()})
    mended = {checkpoint.tensors[name].file for name in checkpoint.rows}
    added = 0
    for done, file in enumerate(files):
        tick(file, done / len(files))
        if file in mended:
            added += _rewrite(folder, checkpoint, file)
        else:
            _copy(checkpoint.path / file, folder / file)
    if (index := checkpoint.path / INDEX).is_file():
        write_files({folder / INDEX: _index(index.read_bytes(), added)})


def merging(checkpoint: MendedCheckpoint) -> Iterator[Change]:
    """The change that merging an adapter is; none without one."""
    source = checkpoint.source
    if isinstance(source, AdapterCheckpoint):
        types = listed(sorted({source.base_dtype(name) for name in source.tensors}))
        new = f"merged with {source.provenance.adapter}, every tensor in the base's own type ({types})"
        why = "A LoRA is no model: runtimes and quantizers need the weights that it makes of its base."
        yield Change("", SINGLE, "", "the base", new, why)


def _write_merged(folder: Path, checkpoint: MendedCheckpoint, source: AdapterCheckpoint, tick: Ticker) -> None:
    """Merging is done in float32; what is stored has the base's types, or the folder would be twice as large (U69)."""
    types = {name: _dtype(source.base_dtype(name), name) for name in checkpoint.tensors}
    planned = [PlannedTensor(name, info.shape, types[name]) for name, info in checkpoint.tensors.items()]
    total = sum(tensor.bytes for tensor in planned)

    def load(name: str) -> Tensor:
        return checkpoint.load(name).to(types[name])

    write_shards(folder, planned, load, on_tensor=lambda name, done: tick(f"merging {name}", done / total))


def _dtype(name: str, where: str) -> torch.dtype:
    found = next((dtype for dtype, known in DTYPES.items() if known == name), None)
    if found is None:
        remedy = "save the checkpoint in float32 or bfloat16 first"
        raise HermetiqError(f"{name} cannot be written", where=where, remedy=remedy)
    return found


def _copy(source: Path, target: Path) -> None:
    with Output(target) as output, source.open("rb") as file:
        while chunk := file.read(_CHUNK):
            output.append(chunk)
        output.finish(source.stat().st_size)
        output.publish()


def _rewrite(folder: Path, checkpoint: MendedCheckpoint, file: str) -> int:
    """One file of the source with its mended tensors; the others, and buffers that no model asks for, as stored.

    Returns by how many bytes its tensors grew.
    """
    stored, wrong = read_header(checkpoint.path, file)
    if wrong:
        raise Refusal(*wrong)

    def load(name: str) -> Tensor:
        known = name in checkpoint.tensors
        return checkpoint.load(name) if known else load_tensor(checkpoint.path, name, stored[name])

    shapes = {name: checkpoint.tensors.get(name, info).shape for name, info in stored.items()}
    if strange := [name for name, info in stored.items() if info.dtype not in DTYPES.values()]:
        remedy = "save the checkpoint in float32 or bfloat16 first"
        raise HermetiqError(f"rows cannot be mended beside {stored[strange[0]].dtype}", where=file, remedy=remedy)
    planned = [PlannedTensor(name, shape, load(name).dtype) for name, shape in shapes.items()]
    write_shards(
        folder, planned, load, stem=file.removesuffix(".safetensors"), max_bytes=sum(tensor.bytes for tensor in planned)
    )
    return sum(tensor.bytes - prod(stored[tensor.name].shape) * tensor.dtype.itemsize for tensor in planned)


def _index(data: bytes, added: int) -> bytes:
    """The source's index, with the bytes that were added counted."""
    document = json.loads(data)
    metadata = document.get("metadata")
    if not added or not isinstance(metadata, dict) or not isinstance(metadata.get("total_size"), int):
        return data
    return json_bytes({**document, "metadata": {**metadata, "total_size": metadata["total_size"] + added}})
