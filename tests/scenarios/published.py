"""What publishers do to a model on its way to the Hub: merge it, fine-tune it once more, write a card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.fixtures.models import copy_of

WEIGHTS = "model.safetensors"
_TRAINED_ON = 0.002
"""Deviation of a further training, as a share of each weight's own."""


def with_card(folder: Path, front_matter: Mapping[str, Any], text: str = "") -> Path:
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(dict(front_matter))}---\n{text}", encoding="utf-8")
    return folder


def relative(parent: Path, folder: Path, *, seed: int) -> Path:
    """A fine-tune of `parent`: the same files, every weight a little off."""
    generator = torch.Generator().manual_seed(seed)

    def off(name: str, weight: Tensor) -> Tensor:
        noise = torch.randn(weight.shape, generator=generator)
        return weight.float() + _TRAINED_ON * weight.float().std() * noise

    return _with_weights(parent, folder, off)


def merged(first: Path, second: Path, folder: Path, share: Callable[[str], float]) -> Path:
    """Files of `first`, weights between both on the great circle (SLERP); `share` of `second` by tensor."""
    others = load_file(second / WEIGHTS)
    return _with_weights(first, folder, lambda name, weight: _slerp(weight, others[name], share(name)))


def _with_weights(parent: Path, folder: Path, change: Callable[[str, Tensor], Tensor]) -> Path:
    copy_of(parent, folder)
    weights = load_file(parent / WEIGHTS)
    changed = {name: change(name, weight).to(weight.dtype).contiguous() for name, weight in weights.items()}
    # The copy may be a link to the parent's own file.
    (folder / WEIGHTS).unlink()
    save_file(changed, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def _slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    a, b = a.float(), b.float()
    angle = torch.acos(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1))
    if angle < 1e-4:
        return torch.lerp(a, b, share)
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
