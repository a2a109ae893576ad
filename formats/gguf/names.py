"""What llama.cpp calls a tensor, and in which order it wants the rows of q and k.

The names come from the `gguf` package's own table. The row order is a fact of the architecture: llama.cpp's `llama`
graph rotates neighbouring rows of a head in pairs, Hugging Face rotates row i with row i + head_dim/2.
"""

from __future__ import annotations

import gguf
import numpy as np
from numpy.typing import NDArray

from hermetiq.errors import HermetiqError
from hermetiq.model import ModelConfig

Order = NDArray[np.int64]

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
"""llama.cpp's architecture for each family."""

_INTERLEAVED = frozenset({gguf.MODEL_ARCH.LLAMA})


def architecture(config: ModelConfig) -> str:
    """`general.architecture`, which also prefixes the model's own metadata keys."""
    return str(gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.family]])


def gguf_names(config: ModelConfig) -> dict[str, str]:
    """Hugging Face name -> GGUF name of every tensor that the configuration expects, in the model's own order.

    Raises:
        HermetiqError: llama.cpp's architecture has no such tensor.
    """
    table = gguf.get_tensor_name_map(ARCHITECTURES[config.family], config.layers)
    names = {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in config.expected_tensors()}
    unknown = [name for name, found in names.items() if found is None]
    if unknown:
        raise HermetiqError(f"llama.cpp's {architecture(config)} has no place for this tensor", where=unknown[0])
    return names


def row_order(config: ModelConfig, name: str) -> Order | None:
    """Which Hugging Face row stands at each row of the GGUF tensor, or None where the order is the same.

    `name` is the Hugging Face name; weights and biases of q and k are re-ordered, in architecture `llama` only.
    Indexing with `np.argsort` of the order leads back.
    """
    if ARCHITECTURES[config.family] not in _INTERLEAVED:
        return None
    for part, heads in (("q_proj", config.heads), ("k_proj", config.kv_heads)):
        if f".self_attn.{part}." in name:
            return interleaved_rows(heads, config.head_dim)
    return None


def interleaved_rows(heads: int, head_dim: int) -> Order:  # (heads * head_dim,)
    """Row order that puts row i of a head next to row i + head_dim/2."""
    rows = np.arange(heads * head_dim).reshape(heads, 2, head_dim // 2)
    return rows.swapaxes(1, 2).reshape(-1)
