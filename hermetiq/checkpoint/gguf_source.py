"""A `.gguf` file as a source: its tensors under Hugging Face names, its tokenizer as llama.cpp understands it.

Many fine-tunes survive only as GGUF. Nothing is mapped: a tensor is read, dequantized a few rows at a time and put into
Hugging Face's row order, so memory stays at one tensor however large the file is.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import BinaryIO, Final

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, Keys
from torch import Tensor

from hermetiq.errors import Finding, Refusal
from hermetiq.formats.gguf import names, rope
from hermetiq.formats.gguf.recipe import FILE_TYPE
from hermetiq.model import ModelConfig, SpecialIds
from hermetiq.rules import finding

from .base import Checkpoint, TensorInfo
from .documents import incomplete
from .families import parse_config
from .folder import mismatches
from .gguf_header import GgufHeader, StoredTensor, read_header
from .gguf_metadata import restored_config, restored_ids, restored_provenance, restored_vocabulary
from .tokenizer import from_vocabulary

_FLOATS: Final = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
_CHUNK: Final = 1 << 20
"""Values dequantized at once: the numpy code makes several temporaries of that size."""
_PART, _PARTS = "split.no", "split.count"
_SPLIT: Final = re.compile(r"(?P<name>.+)-00001-of-(?P<count>\d{5})\.gguf")
_WINDOW: Final = 4096
_WINDOWS: Final = 16


class GgufCheckpoint(Checkpoint):
    """One `.gguf` file, or all parts of a split one opened by its first.

    `documents` is empty: what the metadata states stands in `config`, `tokenizer` and `special`.

    Raises:
        HermetiqError: an architecture that hermetiq does not read.
        Refusal: `source-incomplete`, a file is missing, truncated or corrupt, or tensors do not fit the metadata;
            `pretokenizer-unknown`.
    """

    special: SpecialIds
    """Every special id that llama.cpp takes from the file."""
    recipe: str | None
    """What the file says that it is (`general.file_type`), such as `Q4_K_M`; None for a type not written here."""

    def __init__(self, path: Path) -> None:
        header = _read_parts(path)
        metadata, stored = header.metadata, dict(header.tensors)
        _require_readable(stored.values())
        factors = stored.pop(rope.FACTORS, None)
        shapes = {name: tensor.shape for name, tensor in stored.items()}
        config = restored_config(metadata, shapes, None if factors is None else _read(factors, None).numpy(), path.name)
        vocabulary = restored_vocabulary(metadata, path.name)
        self.path = path
        self.recipe = _recipe(metadata.get(Keys.General.FILE_TYPE))
        self.special = restored_ids(metadata, vocabulary)
        ids = {"bos_token_id": self.special.bos, "eos_token_id": self.special.eos, "pad_token_id": self.special.pad}
        self.config = config | ids
        self.model = parse_config(config, file=path.name)
        self.documents = {}
        template = metadata.get(Keys.Tokenizer.CHAT_TEMPLATE)
        self.templates = {path.name: template} if isinstance(template, str) else {}
        self._stored = _renamed(self.model, stored)
        self.tensors = {
            name: TensorInfo(tensor.shape, tensor.type.name, tensor.path.name) for name, tensor in self._stored.items()
        }
        wrong = mismatches(self.model, self.tensors)
        if wrong:
            raise Refusal(*wrong)
        self.findings = _quantized(self._stored.values(), path.name)
        self.provenance = restored_provenance(metadata, path.stem)
        self.tokenizer = from_vocabulary(vocabulary, self.special, file=path.name)

    def load(self, name: str) -> Tensor:
        return _read(self._stored[name], names.row_order(self.model, name))

    def fingerprint(self) -> str:
        """Header and, of each tensor, 16 windows of 4 KiB: the first and the last bytes among them."""
        digest = hashlib.sha256()
        for part in dict.fromkeys(tensor.path for tensor in self._stored.values()):
            tensors = [tensor for tensor in self._stored.values() if tensor.path == part]
            with part.open("rb") as file:
                digest.update(file.read(min(tensor.start for tensor in tensors)))
                for tensor in tensors:
                    last = max(0, tensor.size - _WINDOW)
                    for start in sorted({last * window // (_WINDOWS - 1) for window in range(_WINDOWS)}):
                        file.seek(tensor.start + start)
                        digest.update(file.read(min(_WINDOW, tensor.size - start)))
        return digest.hexdigest()


def _recipe(file_type: object) -> str | None:
    return next(
        (name for name, number in FILE_TYPE.items() if isinstance(file_type, int) and number == file_type), None
    )


def _read_parts(path: Path) -> GgufHeader:
    """The header of a file, with the tensors of all its parts where it is the first of several."""
    header = read_header(path)
    number, count = (header.metadata.get(key, default) for key, default in ((_PART, 0), (_PARTS, 1)))
    match = _SPLIT.fullmatch(path.name)
    if count == 1 and number == 0:
        return header
    if number != 0 or match is None or int(match["count"]) != count:
        found = f"part {number} of {count} under this name"
        expected = "the first part, NAME-00001-of-0000N.gguf"
        raise Refusal(incomplete(path.name, found=found, expected=expected, repair="Give the first part of the model."))
    tensors = dict(header.tensors)
    for index in range(2, count + 1):
        part = read_header(path.with_name(f"{match['name']}-{index:05d}-of-{count:05d}.gguf"))
        if not tensors.keys().isdisjoint(part.tensors):
            raise Refusal(incomplete(path.name, found="a tensor in two parts", expected="parts of one model"))
        tensors |= part.tensors
    return GgufHeader(header.metadata, tensors)


def _renamed(model: ModelConfig, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors under their Hugging Face names, in file order; an unknown one keeps its own name."""
    known = {theirs: ours for ours, theirs in names.gguf_names(model).items()}
    return {known.get(name, name): tensor for name, tensor in stored.items()}


def _require_readable(tensors: Iterable[StoredTensor]) -> None:
    """Refuse types that the `gguf` package has no dequantizer for, before anything is read."""
    for kind in {tensor.type: tensor for tensor in tensors if tensor.type not in _FLOATS}.values():
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind.type][1]), np.uint8), kind.type)
        except NotImplementedError:
            found, expected = f"tensors of type {kind.type.name}", "a type that the gguf package dequantizes"
            raise Refusal(incomplete(kind.path.name, found=found, expected=expected)) from None


def _quantized(tensors: Iterable[StoredTensor], file: str) -> tuple[Finding, ...]:
    counts = Counter(tensor.type.name for tensor in tensors if tensor.type not in _FLOATS)
    if not counts:
        return ()
    found = ", ".join(f"{count} tensors of {name}" for name, count in counts.most_common())
    return (finding("source-quantized", file=file, found=found, expected="F32, F16 or BF16", severity="warning"),)


def _read(tensor: StoredTensor, order: names.Order | None) -> Tensor:
    """The values of a tensor, float32 where it was quantized; row i of the file becomes row `order[i]`."""
    width = tensor.shape[-1]
    count = prod(tensor.shape) // width
    rows = np.arange(count) if order is None or len(tensor.shape) == 1 else order
    values = torch.empty((count, width), dtype=_FLOATS.get(tensor.type, torch.float32))
    step = max(1, _CHUNK // width)
    with tensor.path.open("rb") as file:
        file.seek(tensor.start)
        for start in range(0, count, step):
            part = rows[start : start + step]
            values[torch.from_numpy(part)] = _read_rows(file, tensor, len(part))
    values = values.reshape(tensor.shape)
    # A bias is one row of the file, and its values are what the order speaks of.
    return values[np.argsort(order)] if order is not None and len(tensor.shape) == 1 else values


def _read_rows(file: BinaryIO, tensor: StoredTensor, count: int) -> Tensor:
    block, size = gguf.GGML_QUANT_SIZES[tensor.type]
    row = tensor.shape[-1] // block * size
    stored = np.fromfile(file, np.uint8, count * row)
    if stored.size != count * row:
        raise Refusal(incomplete(tensor.path.name, found="fewer bytes than when it was opened", expected="the file"))
    if tensor.type in _FLOATS:
        return torch.from_numpy(stored).view(_FLOATS[tensor.type]).reshape(count, -1)
    return torch.from_numpy(gguf.dequantize(stored.reshape(count, row), tensor.type))
