"""What an export will write and need, known before any weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from hermetiq.calibration.packing import CalibrationRows
from hermetiq.calibration.sensitivity import probe_bytes
from hermetiq.chat.contract import ChatContract
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.errors import Finding
from hermetiq.formats.exl2_plan import MixedPlan
from hermetiq.formats.gguf import GgufPlan
from hermetiq.formats.linear_plan import LinearPlan, linears
from hermetiq.measurement import Measurement
from hermetiq.model import ModelConfig
from hermetiq.quantize.spec import Spec
from hermetiq.repair import Change

RESERVE = 300_000_000
"""Bytes that Python, torch and the tokenizer take before any weight is read."""
_FLOAT = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class PlannedFile:
    """One artifact of a plan, in the words a person decides by."""

    spec: str
    name: str
    """Of the file, or of the folder."""
    bytes: int
    """Of the file; of a folder's tensors."""
    bpw: float
    nominal_bpw: float
    fallback_share: float
    """Share of the weights that get another type than the recipe names, because of a tensor's shape (U26)."""
    types: Mapping[str, int]
    """Number of tensors by type."""
    unsplit: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """By the number of GPUs of a tensor-parallel runtime, the layers it cannot split; empty where all can (U23)."""


@dataclass(frozen=True)
class Plan:
    """The whole export."""

    files: tuple[PlannedFile, ...]
    disk: int
    """Bytes of all files, and of the journal while the export runs."""
    memory: int
    """Estimated peak of resident bytes."""
    calibration: Mapping[str, Any] | None = None
    """Rows and tokens that the statistics are taken from."""
    repairs: tuple[Change, ...] | None = None
    """What is repaired on the way; None where no repair was asked for."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Job:
    """A checkpoint that was admitted, and what is to be made of it."""

    source: Checkpoint
    contract: ChatContract
    findings: tuple[Finding, ...]
    """What the rules said and did not refuse."""
    specs: Mapping[str, Spec]
    """By the path of the artifact below the output folder."""
    gguf: Mapping[str, GgufPlan]
    """Of the files, by the same path."""
    linear: Mapping[str, LinearPlan]
    """Of the GPTQ and AWQ folders, by the same path."""
    mixed: Mapping[str, MixedPlan]
    """Of the EXL2 folders, by the same path."""
    measurement: Measurement | None
    """An earlier one to choose EXL2's widths by; where None, the export takes its own."""
    rows: CalibrationRows | None
    """None where nothing is calibrated."""
    importance: bool
    """GGUF files get an importance matrix from the same pass."""
    seed: int
    sequential: bool
    """Each block is calibrated on what the quantized blocks before it put out."""
    repairs: tuple[Change, ...] | None = None
    """What is other in `source` than in the checkpoint on disk; None where no repair was asked for."""
    init_tags: str | None = None
    chat_template: str | None = None
    """As in the manifest."""

    @cached_property
    def fingerprint(self) -> str:
        """Of the source; taken once, as it reads a little of every tensor."""
        return self.source.fingerprint()

    @property
    def folders(self) -> frozenset[str]:
        """Paths of the artifacts that are folders."""
        return frozenset((*self.linear, *self.mixed))

    @property
    def settles(self) -> frozenset[str]:
        """Paths of the artifacts whose final norm is settled: those that are calibrated and round anything."""
        return self.folders | {path for path, file in self.gguf.items() if self.importance and file.quantized}

    @property
    def measures(self) -> bool:
        """Whether the calibration pass has to find out what EXL2's widths cost each layer."""
        return bool(self.mixed) and self.measurement is None

    @property
    def plan(self) -> Plan:
        planned = {
            **{name: _planned_folder(name, folder) for name, folder in self.linear.items()},
            **{name: _planned_folder(name, folder) for name, folder in self.mixed.items()},
            **{name: _planned_file(name, self.specs[name], file) for name, file in self.gguf.items()},
        }
        disk = sum(item.bytes for item in planned.values()) + self._journal
        calibration = asdict(self.rows.report) if self.rows else None
        return Plan(tuple(planned[name] for name in self.specs), disk, self._memory, calibration, self.repairs)

    @property
    def _journal(self) -> int:
        """Bytes of the work folder when it is fullest: the folders' tensors, and statistics that are kept."""
        kept = self.source.model.layers * sum(map(_triangle, _inputs(self.source.model))) if self.measures else 0
        tensors = [folder.bytes for folder in self.linear.values()] + [folder.bytes for folder in self.mixed.values()]
        return sum(tensors) + kept

    @property
    def _memory(self) -> int:
        """Two tensors, as one is read ahead; while calibrating, a block with its statistics and the states."""
        shapes = self.source.model.expected_tensors().values()
        narrow = all(info.dtype in ("BF16", "F16") for info in self.source.tensors.values())
        writing = 2 * max(map(prod, shapes)) * (2 if narrow else _FLOAT)
        walking = _walking(self.source.model, self.rows) if self.rows else 0
        if self.mixed:
            # The head is rounded too, with its scales and the feedback of its columns.
            walking += 3 * _FLOAT * self.source.model.rows * self.source.model.hidden
        if self.measures:
            walking += probe_bytes(self.source.model)
        return RESERVE + max(writing, walking)


def _walking(model: ModelConfig, rows: CalibrationRows) -> int:
    """Bytes that calibration holds at its largest: while a block's weights are solved with their Gram matrices."""
    layers = [shape for name, shape in linears(model).items() if name.startswith("model.layers.0.")]
    weights = sum(map(prod, layers))
    grams = sum(width**2 for width in {width for _, width in layers}) * 2
    states = rows.report.tokens * model.hidden
    return _FLOAT * (3 * weights + grams + states)


def _inputs(model: ModelConfig) -> tuple[int, ...]:
    """Widths of the inputs of a block's linears, those that several share counted once."""
    return (model.hidden, model.heads * model.head_dim, model.hidden, model.intermediate)


def _triangle(width: int) -> int:
    """Bytes of a Gram matrix as it is kept."""
    return _FLOAT * width * (width + 1) // 2


def _planned_file(name: str, spec: Spec, file: GgufPlan) -> PlannedFile:
    types = Counter(tensor.choice.type.name for tensor in file.tensors)
    return PlannedFile(
        spec=str(spec),
        name=name,
        bytes=file.size,
        bpw=file.bits_per_weight,
        nominal_bpw=file.nominal_bits_per_weight,
        fallback_share=file.fallback_share,
        types=dict(sorted(types.items())),
    )


def _planned_folder(name: str, folder: LinearPlan | MixedPlan) -> PlannedFile:
    return PlannedFile(
        spec=str(folder.spec),
        name=name,
        bytes=folder.bytes,
        bpw=folder.bits_per_weight,
        nominal_bpw=folder.nominal_bits_per_weight,
        fallback_share=0.0,
        types=_types(folder),
        unsplit=folder.unsplit,
    )


def _types(folder: LinearPlan | MixedPlan) -> dict[str, int]:
    """Number of the checkpoint's tensors by how they are stored."""
    layers, plain = len(linears(folder.model)), len(folder.model.expected_tensors())
    if isinstance(folder, LinearPlan):
        return {f"{folder.spec.linear.bits}-bit": layers, "F16": plain - layers}
    # The head is packed; a tied one is no tensor of the checkpoint.
    return {
        "2- to 8-bit": layers,
        f"{folder.spec.mixed.head_bits}-bit": 1,
        "F16": plain - layers - (not folder.model.tied),
    }
