"""`measurement.json`: what each width costs each layer of a model, so that one measurement serves every target size.

Measuring is the dear part of EXL2. What it found is kept with the export, and `--measurement` makes further targets
from it. The file may come from anywhere, so it is read with suspicion, and used only for the model it was taken of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Final, Self

from hermetiq import typed_json
from hermetiq.errors import HermetiqError
from hermetiq.formats.output import write_files
from hermetiq.manifest import StoredFile
from hermetiq.quantize.allocate import Option, allocate
from hermetiq.quantize.ladder import LADDER, Rung, bit_budget, stored_bits

FILE: Final = "measurement.json"
VERSION: Final = 1
TOLERANCE: Final = 0.005
"""Share of a target that an allocation may leave unspent without a word."""
_LARGEST_SIDE: Final = 1 << 20
_LARGEST_NUMBER: Final = 1e30
_REMEDY: Final = "measure again: leave --measurement out"


@dataclass(frozen=True)
class Layer:
    """What was measured of one linear layer.

    Raises:
        HermetiqError: a side is no size of a layer, or a number is negative, none, or beyond all sense.
    """

    out: int
    columns: int
    errors: tuple[float, ...]
    """By rung: tr(E H Eᵀ), the energy of the error E of the rounded weight under the Hessian H of its inputs."""
    factor: float
    """Nats per token that a unit of that energy costs the model."""

    def __post_init__(self) -> None:
        if not (1 <= self.out <= _LARGEST_SIDE and 1 <= self.columns <= _LARGEST_SIDE):
            raise HermetiqError(f"no layer has {self.out} x {self.columns} weights")
        # NaN fails the comparison, too.
        if not all(0 <= number <= _LARGEST_NUMBER for number in (*self.errors, self.factor)):
            raise HermetiqError("errors and factor must be numbers from 0 up")

    @property
    def options(self) -> tuple[Option, ...]:
        """Size and cost of each rung.

        A rung costs no more than any smaller one, whatever was measured: errors come from a sample of the rows, and
        that noise must not make more bits look harmful.
        """
        sizes = [_bits(rung, self.out, self.columns) for rung in LADDER]
        measured = [(size, error * self.factor) for size, error in zip(sizes, self.errors, strict=True)]
        return tuple(Option(size, min(cost for other, cost in measured if other <= size)) for size in sizes)


@dataclass(frozen=True)
class Measurement:
    """The whole of `measurement.json`.

    Raises:
        HermetiqError: it was taken with another ladder than this version's, or it is of no layers.
    """

    source: str
    """Fingerprint of the checkpoint."""
    calibration: str
    """SHA-256 of the token ids. It says where the numbers come from, and binds nothing: another export may have another
    text and still use them."""
    rungs: tuple[Rung, ...]
    """The ladder that errors are listed along."""
    layers: Mapping[str, Layer]
    """By the name of the module, `model.layers.0.self_attn.q_proj`."""
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.rungs != LADDER:
            raise HermetiqError("taken with another ladder of widths, by another version of hermetiq", remedy=_REMEDY)
        if not self.layers:
            raise HermetiqError("no layers were measured", remedy=_REMEDY)
        for module, layer in self.layers.items():
            if len(layer.errors) != len(LADDER):
                what = f"{len(layer.errors)} errors for {len(LADDER)} widths"
                raise HermetiqError(what, where=module, remedy=_REMEDY)

    @property
    def weights(self) -> int:
        """Of all layers together."""
        return sum(layer.out * layer.columns for layer in self.layers.values())

    @property
    def sha256(self) -> str:
        """Of the file, as hex."""
        return hashlib.sha256(typed_json.encode(self)).hexdigest()

    def allocated(self, bpw: float) -> dict[str, Rung]:
        """The rung of each layer, by module, that expects the least damage at no more than `bpw` bits per weight.

        What is left unspent is less than the next larger rung of any layer would take: next to nothing in a whole
        model, more than `TOLERANCE` in a tiny one (see `shortfall`).

        Raises:
            HermetiqError: not even the smallest rungs fit.
        """
        options = {module: layer.options for module, layer in self.layers.items()}
        least = sum(min(option.bits for option in choices) for choices in options.values())
        budget = bit_budget(bpw, self.weights)
        if least > budget:
            raise HermetiqError(
                f"{bpw} bits per weight are too few for this model's layers",
                remedy=f"ask for {ceil(least / self.weights * 1000) / 1000} or more",
            )
        return {module: LADDER[index] for module, index in allocate(options, budget).items()}

    def bpw_of(self, rungs: Mapping[str, Rung]) -> float:
        """Stored bits per weight of all layers together; `rungs` by module, one for each layer."""
        bits = sum(_bits(rungs[module], layer.out, layer.columns) for module, layer in self.layers.items())
        return bits / self.weights

    def shortfall(self, rungs: Mapping[str, Rung], bpw: float) -> float:
        """Share of the target, 0 to 1, that `rungs` leave unspent; beyond `TOLERANCE` the user is told."""
        return 1 - self.bpw_of(rungs) / bpw

    def expected_kl(self, rungs: Mapping[str, Rung]) -> float:
        """Nats per token, were the damages of all layers small and independent; `rungs` of `LADDER`, by module."""
        return sum(layer.options[LADDER.index(rungs[module])].cost for module, layer in self.layers.items())

    def require(self, source: str, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Hold the measurement against the model it is to be used for.

        Args:
            source: the fingerprint of that model.
            shapes: (out, in) of each linear layer of its blocks, by module.

        Raises:
            HermetiqError: it was taken of another one; with the first difference.
        """
        measured = {module: (layer.out, layer.columns) for module, layer in self.layers.items()}
        for module in sorted(measured.keys() | shapes.keys()):
            if measured.get(module) != shapes.get(module):
                what = f"measured {_shape(measured.get(module))}, the model has {_shape(shapes.get(module))}"
                raise HermetiqError(what, where=f"measurement of {module}", remedy=_REMEDY)
        if self.source != source:
            what = f"taken of a source with fingerprint {self.source[:12]}, this one's is {source[:12]}"
            raise HermetiqError(what, where="measurement", remedy=_REMEDY)

    def write(self, folder: Path) -> StoredFile:
        """Write `measurement.json` into `folder`, all of it or nothing; returns its entry in the manifest there.

        Raises:
            HermetiqError: the disk is full or the folder cannot be written.
        """
        path = folder / FILE
        return StoredFile(FILE, write_files({path: typed_json.encode(self)})[path])

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a measurement.

        Raises:
            HermetiqError: it cannot be read, is not JSON, not of this version or ladder, or a value in it cannot be.
        """
        return typed_json.read(path, cls, version=VERSION, remedy=_REMEDY)


@cache
def _bits(rung: Rung, out: int, columns: int) -> int:
    return stored_bits(rung.groups(columns), out)


def _shape(shape: tuple[int, int] | None) -> str:
    return f"{shape[0]} x {shape[1]}" if shape else "no such layer"
