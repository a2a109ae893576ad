"""A folder that GPTQ, AWQ or EXL2 wrote, ours or another tool's, read as the model it stands for.

Verification needs the weights that a runtime sees, and peers have to be measured the same way. So each packed layer
appears under its Hugging Face name and is dequantized when it is asked for; everything else passes through as stored.
Packed parts are checked by their headers when the folder is opened, and by their values when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from hermetiq.errors import Finding, Refusal
from hermetiq.formats import awq, exl2, gptq
from hermetiq.formats.packed import Malformed
from hermetiq.formats.shards import DTYPES
from hermetiq.model import HEAD, ModelConfig
from hermetiq.quantize.result import MixedLinear, QuantizedLinear

from . import tokenizer
from .base import Checkpoint, TensorInfo
from .documents import incomplete, read_json
from .fields import Fields
from .folder import FLOATS, mismatches, read_folder
from .identity import folder_digest
from .shards import listed, load_tensor

_TYPES: Final = {name: dtype for dtype, name in DTYPES.items()}
_CONFIG, _SECTION = "config.json", "quantization_config"
_OTHER_LAYOUT: Final = ("dynamic", "is_marlin_format")
"""Options of other tools that give some layers a layout of their own."""

Parts = Mapping[str, Tensor]
"""Stored tensors of one layer, by the last part of their names."""


class PackedCheckpoint(Checkpoint):
    """A model folder whose `quantization_config` is of GPTQ, of AWQ's version `gemm`, or of EXL2.

    `tensors` and `load` show float32 weights in place of packed ones. A packed head is not the embedding, also where
    the configuration of another tool still says so. It is no source to export from, so `source-quantized` stands among
    its findings as an error.

    Raises:
        HermetiqError: the model is of no supported family.
        Refusal: the folder is not whole, or packed in a way that is not read here.
    """

    def __init__(self, folder: Path) -> None:
        contents = read_folder(folder)
        errors = [each for each in contents.findings if each.severity == "error" and each.rule != "source-quantized"]
        if contents.model is None or errors:
            raise Refusal(*errors)
        self.path = folder
        self.documents = contents.documents
        self.templates = contents.templates
        self.provenance = contents.provenance
        self.findings = contents.findings
        self._stored = contents.tensors
        self._packing = _read_packing(contents.documents[_CONFIG][_SECTION])
        self._layers = _layers(self._packing, contents.tensors)
        self.model = replace(contents.model, tied=contents.model.tied and HEAD not in self._layers)
        self.config = {**contents.documents[_CONFIG], "tie_word_embeddings": self.model.tied}
        if wrong := (*_malformed(self._packing, self._layers, self._stored), *_unpacked(self._layers, self._stored)):
            raise Refusal(*wrong)
        self.tensors = self._logical()
        if wrong := mismatches(self.model, self.tensors):
            raise Refusal(*wrong)
        self.tokenizer = tokenizer.from_folder(folder, self.documents)

    def load(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise KeyError(name)
        if name not in self._layers:
            return self._load_stored(name)
        parts = self._layers[name]
        try:
            linear = self._packing.unpack({part: self._load_stored(parts[part]) for part in parts})
        except Malformed as malformed:
            raise Refusal(_finding(malformed, parts, self._stored)) from malformed
        return linear.dequantize()[: self.tensors[name].shape[0]]

    def fingerprint(self) -> str:
        return folder_digest(self.path, self._stored, self._load_stored)

    def _load_stored(self, name: str) -> Tensor:
        return load_tensor(self.path, name, self._stored[name])

    def _logical(self) -> dict[str, TensorInfo]:
        """The tensors of the model, in file order, each packed layer where its codes lie."""
        weights = {parts[self._packing.parts[0]]: name for name, parts in self._layers.items()}
        packed = {stored for parts in self._layers.values() for stored in parts.values()}
        tensors = {}
        for stored, info in self._stored.items():
            if stored in weights:
                name = weights[stored]
                tensors[name] = TensorInfo(self._shape(name), self._packing.name, info.file)
            elif stored not in packed and not self._is_filler(stored):
                tensors[stored] = info
        return tensors

    def _shape(self, name: str) -> tuple[int, int]:
        """(out, in) of a packed layer, without padding where that makes it what the configuration says."""
        height, width = self._packing.shape_of(_meta(self._layers[name], self._stored))
        expected = self.model.expected_tensors().get(name, (height, width))[0]
        return expected if self._packing.padded(expected) == height else height, width

    def _is_filler(self, name: str) -> bool:
        """Whether it is the bias of zeros that auto-gptq stores for a layer that has none."""
        layer = name.removesuffix("bias") + "weight"
        return layer in self._layers and name not in self.model.expected_tensors() and not self._load_stored(name).any()


def unpacked(
    section: Mapping[str, Any], names: Collection[str], load: Callable[[str], Tensor], model: ModelConfig
) -> Callable[[str], Tensor]:
    """The model's tensors by name, from stored ones wherever they lie.

    Args:
        section: the `quantization_config` by which layers are packed.
        names: of the stored tensors.
        load: a stored tensor by its name.
        model: tells how many rows of a layer are no padding.
    """
    packing = _read_packing(section)
    layers, shapes = _layers(packing, names), {HEAD: (model.rows, model.hidden)} | model.expected_tensors()

    def tensor(name: str) -> Tensor:
        if name not in layers:
            return load(name)
        linear = packing.unpack({part: load(stored) for part, stored in layers[name].items()})
        return linear.dequantize()[: shapes[name][0]]

    return tensor


def is_packed(folder: Path) -> bool:
    """Whether the folder's `config.json` claims a layout that `PackedCheckpoint` reads."""
    document, _ = read_json(folder, _CONFIG)
    section = (document or {}).get(_SECTION)
    return isinstance(section, Mapping) and section.get("quant_method") in tuple(_PACKINGS) and "bits" in section


@dataclass(frozen=True)
class _Packing:
    """How the layers of one folder are packed."""

    name: str
    """In the place of a stored type."""
    parts: tuple[str, ...]
    """The last parts of the names of a layer's tensors. The first holds the codes, and tells that a layer is packed."""
    shape_of: Callable[[Parts], tuple[int, int]]
    """(out, in) as stored."""
    unpack: Callable[[Parts], QuantizedLinear | MixedLinear]
    padded: Callable[[int], int] = int
    """How many rows are stored for a layer of so many."""


def _read_packing(section: Mapping[str, Any]) -> _Packing:
    """What `quantization_config` says.

    Raises:
        Refusal: `source-incomplete`, a value makes no sense or means a layout that is not read here.
    """
    fields = Fields(section, _CONFIG, prefix=f"{_SECTION}.")
    for key in _OTHER_LAYOUT:
        if section.get(key):
            fields.refuse(key, section[key], "one layout for all layers")
    if section.get("pack_dtype", "int32") != "int32":
        fields.refuse("pack_dtype", section["pack_dtype"], "int32")
    return _PACKINGS[section["quant_method"]](fields)


def _gptq(fields: Fields) -> _Packing:
    bits = _choice(fields, ("bits",), gptq.WIDTHS)
    offset = gptq.ZERO_OFFSETS[_choice(fields, ("checkpoint_format", "format"), tuple(gptq.ZERO_OFFSETS))]
    group_size = _group_size(fields)
    return _Packing(
        name=f"GPTQ{bits}",
        parts=("qweight", "qzeros", "scales", "g_idx"),
        shape_of=partial(gptq.shape_of, bits=bits, group_size=group_size),
        unpack=partial(gptq.unpack, bits=bits, zero_offset=offset, group_size=group_size),
    )


def _awq(fields: Fields) -> _Packing:
    bits = _choice(fields, ("bits",), (awq.BITS,))
    _choice(fields, ("version", "checkpoint_format", "format"), ("gemm", "GEMM"))
    _choice(fields, ("zero_point",), (True,))
    group_size = _group_size(fields)
    return _Packing(
        name=f"AWQ{bits}",
        parts=("qweight", "qzeros", "scales"),
        shape_of=partial(awq.shape_of, group_size=group_size),
        unpack=partial(awq.unpack, group_size=group_size),
    )


def _exl2(_: Fields) -> _Packing:
    """Each layer says itself how it is packed; what the configuration says was only asked of the converter."""
    return _Packing(
        name="EXL2",
        parts=("q_weight", "q_scale", "q_scale_max", "q_groups", "q_invperm"),
        shape_of=exl2.shape_of,
        unpack=exl2.unpack,
        padded=exl2.padded,
    )


_PACKINGS: Final[Mapping[str, Callable[[Fields], _Packing]]] = {"gptq": _gptq, "awq": _awq, "exl2": _exl2}


def _group_size(fields: Fields) -> int | None:
    """Columns of a group; None for one group."""
    return None if fields.raw.get("group_size") == -1 else fields.size("group_size", 0)


def _choice(fields: Fields, keys: tuple[str, ...], allowed: tuple[Any, ...]) -> Any:
    """The value of the first of `keys` that is there; the first allowed one where none is."""
    key = next((key for key in keys if key in fields.raw), None)
    if key is None:
        return allowed[0]
    if fields.raw[key] not in allowed:
        fields.refuse(key, fields.raw[key], " or ".join(map(str, allowed)))
    return allowed[allowed.index(fields.raw[key])]


def _layers(packing: _Packing, stored: Collection[str]) -> dict[str, dict[str, str]]:
    """The names of the parts of each packed layer, by the Hugging Face name of its weight."""
    codes = f".{packing.parts[0]}"
    modules = (name.removesuffix(codes) for name in stored if name.endswith(codes))
    return {
        f"{module}.weight": {part: f"{module}.{part}" for part in packing.parts if f"{module}.{part}" in stored}
        for module in modules
    }


def _malformed(
    packing: _Packing, layers: Mapping[str, Mapping[str, str]], stored: Mapping[str, TensorInfo]
) -> tuple[Finding, ...]:
    """`source-incomplete` for each layer whose parts have other shapes or types than its layout."""
    if not layers:
        return (
            incomplete(_CONFIG, field=_SECTION, found="no packed layer", expected=f"layers with a {packing.parts[0]}"),
        )
    findings = []
    for parts in layers.values():
        try:
            packing.shape_of(_meta(parts, stored))
        except Malformed as malformed:
            findings.append(_finding(malformed, parts, stored))
    return tuple(findings)


def _unpacked(layers: Mapping[str, Mapping[str, str]], stored: Mapping[str, TensorInfo]) -> tuple[Finding, ...]:
    """`source-incomplete` for layers stored twice, and for tensors beside the packed ones that are no floats."""
    packed = {name for parts in layers.values() for name in parts.values()}
    odd = {name: info for name, info in stored.items() if name not in packed and info.dtype not in FLOATS}
    twice = {name: stored[name] for name in layers if name in stored}
    table = ((odd, "types of another layout"), (twice, "beside a packed layer"))
    return tuple(
        incomplete(
            next(iter(wrong.values())).file,
            found=f"{what}: {listed(f'{name} ({info.dtype})' for name, info in wrong.items())}",
            expected="float tensors for what is not packed",
        )
        for wrong, what in table
        if wrong
    )


def _meta(parts: Mapping[str, str], stored: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    """A layer's parts as their headers have them, without values."""
    tensors = {}
    for part, name in parts.items():
        info = stored[name]
        if info.dtype not in _TYPES:
            raise Malformed(part, info.dtype, f"one of {listed(_TYPES)}")
        tensors[part] = torch.empty(info.shape, dtype=_TYPES[info.dtype], device="meta")
    return tensors


def _finding(malformed: Malformed, parts: Mapping[str, str], stored: Mapping[str, TensorInfo]) -> Finding:
    codes = next(iter(parts.values()))
    field = f"{codes.rpartition('.')[0]}.{malformed.part}"
    return incomplete(
        stored.get(field, stored[codes]).file, field=field, found=malformed.found, expected=malformed.expected
    )
