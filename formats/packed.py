"""What packed linear layers have in common in GPTQ, AWQ and EXL2: named parts, and distrust of those that were read.

Artifacts of other tools come in here too. What is wrong with one is said of the part by its name, so that the reader of
a folder can tell which tensor of which file it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
"""Types in which tools store scales."""


class Malformed(ValueError):
    """A part of a packed linear layer is not what its format says."""

    def __init__(self, part: str, found: str, expected: str) -> None:
        self.part, self.found, self.expected = part, found, expected
        super().__init__(f"{part}: found {found}, expected {expected}")


@dataclass(frozen=True)
class Part:
    """Shape and type of one stored tensor of a linear layer."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def matrix(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """Rows and columns of a part.

    Raises:
        Malformed: it is missing or no matrix.
    """
    shape = _shape(tensors, name, 2, "a matrix")
    return shape[0], shape[1]


def vector(tensors: Mapping[str, Tensor], name: str) -> int:
    """Length of a part.

    Raises:
        Malformed: it is missing or no vector.
    """
    return _shape(tensors, name, 1, "a vector")[0]


def _shape(tensors: Mapping[str, Tensor], name: str, axes: int, expected: str) -> tuple[int, ...]:
    if name not in tensors:
        raise Malformed(name, "no such tensor", expected)
    shape = tuple(tensors[name].shape)
    if len(shape) != axes or 0 in shape:
        raise Malformed(name, f"shape {shape}", expected)
    return shape


def require_layout(tensors: Mapping[str, Tensor], layout: Mapping[str, Part]) -> None:
    """Hold the shapes and types of stored parts against a layout; scales may be of any float type.

    Raises:
        Malformed: a part is missing, or has another shape or type.
    """
    for name, part in layout.items():
        if name not in tensors:
            raise Malformed(name, "no such tensor", f"shape {part.shape}")
        tensor = tensors[name]
        if tuple(tensor.shape) != part.shape:
            raise Malformed(name, f"shape {tuple(tensor.shape)}", f"shape {part.shape}")
        types = FLOATS if name == "scales" else (part.dtype,)
        if tensor.dtype not in types:
            raise Malformed(name, f"{tensor.dtype}", " or ".join(map(str, types)))


def require_steps(
    scales: Tensor,  # (groups, out)
) -> None:
    """Hold the values of scales against what a grid needs.

    Raises:
        Malformed: some are zero or not finite.
    """
    unusable = ~scales.isfinite() | (scales == 0)
    if count := int(unusable.sum()):
        raise Malformed("scales", f"{count} of {unusable.numel()} zero, NaN or infinite", "finite steps between codes")


def groups_in_order(columns: int, group_size: int, device: torch.device | str = "cpu") -> Tensor:  # (columns,) int32
    """The group of each column where groups lie side by side; the last may be short."""
    return torch.arange(columns, dtype=torch.int32, device=device) // group_size
