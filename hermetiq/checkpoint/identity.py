"""The fingerprint of a source: small files whole, tensors by a sample: seconds, not a second read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .base import TensorInfo
from .documents import DOCUMENTS, TEMPLATE

if TYPE_CHECKING:
    from torch import Tensor

_FILES = (*DOCUMENTS, TEMPLATE, "tokenizer.model", "vocab.json", "merges.txt", "adapter_config.json")
_WINDOW = 4096
_WINDOWS = 16


def folder_digest(
    folder: Path,
    tensors: Mapping[str, TensorInfo],
    load: Callable[[str], Tensor],
) -> str:
    """SHA-256, as hex, of a folder's configuration and tokenizer files and of its tensors.

    Of a tensor it takes name, type, shape and 16 windows of 4 KiB, the first and the last bytes among them. Another
    training step changes all windows; an edit of single values between them goes unseen.
    """
    digest = hashlib.sha256()
    for name in _FILES:
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            digest.update(f"{name} {len(content)}\n".encode())
            digest.update(content)
    for name, info in tensors.items():
        digest.update(f"{name} {info.dtype} {info.shape}\n".encode())
        digest.update(_sample(load(name)))
    return digest.hexdigest()


def _sample(tensor: Tensor) -> bytes:
    import torch

    stored = tensor.contiguous().reshape(-1).view(torch.uint8)
    last = stored.numel() - _WINDOW
    if last <= _WINDOW * (_WINDOWS - 1):
        return stored.numpy().tobytes()
    starts = (last * i // (_WINDOWS - 1) for i in range(_WINDOWS))
    return b"".join(stored[start : start + _WINDOW].numpy().tobytes() for start in starts)
