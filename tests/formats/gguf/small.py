"""Small models in memory, with vocabularies that llama.cpp loads, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hermetiq.formats.gguf import GgufHeader, plan, write
from hermetiq.model import ModelConfig, SpecialIds, Token, TokenKind, Vocabulary
from hermetiq.quantize.ggml import Ggml

ROWS = 288

CONFIG = ModelConfig(
    family="llama",
    layers=9,
    hidden=256,
    intermediate=256,
    heads=8,
    kv_heads=2,
    head_dim=32,
    rows=ROWS,
    context_length=512,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    tied=False,
    attention_bias=False,
    output_bias=False,
    mlp_bias=False,
    qk_norm=False,
    sliding_window=None,
)
"""Rows that every block divides, four query heads to a key head, layers enough for the rules that count them."""

NARROW = replace(CONFIG, hidden=96, intermediate=160, heads=6, kv_heads=3, head_dim=16, tied=True)
"""Rows that no K-quant divides; the embedding is the head."""


@dataclass(frozen=True)
class StoredHere:
    file: str = "model.safetensors"


@dataclass
class MemorySource:
    """Weights in memory; remembers what was read."""

    weights: Mapping[str, Tensor]
    read: list[str] = field(default_factory=list)

    @property
    def tensors(self) -> Mapping[str, StoredHere]:
        return {name: StoredHere() for name in self.weights}

    def load(self, name: str) -> Tensor:
        self.read.append(name)
        return self.weights[name]


def random_weights(config: ModelConfig, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Every expected tensor, lively enough that a wrong row or a lost bias shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=generator) * 0.1 + (1.0 if "norm" in name else 0.0)).to(dtype)
        for name, shape in config.expected_tensors().items()
    }


def vocabulary(tokens: int = ROWS) -> Vocabulary:
    """A SentencePiece-like vocabulary: three control tokens, 256 bytes, pieces."""
    control = [Token("<unk>", TokenKind.UNKNOWN), Token("<s>", TokenKind.CONTROL), Token("</s>", TokenKind.CONTROL)]
    octets = [Token(f"<0x{byte:02X}>", TokenKind.BYTE) for byte in range(256)]
    pieces = [Token(f"▁w{index}", TokenKind.NORMAL, -float(index)) for index in range(max(0, tokens - 259))]
    return Vocabulary("llama", "default", (*control, *octets, *pieces)[:tokens], (), add_space_prefix=True)


IDS = SpecialIds(eos=2, eot=None, eom=None, bos=1, pad=None, unk=0, add_bos=True, add_eos=False)


def header(config: ModelConfig, **changes: Any) -> GgufHeader:
    """A header for a model of this shape."""
    start = GgufHeader(config, vocabulary(min(config.rows, ROWS)), IDS, "{{ messages }}", "small")
    return replace(start, **changes)


def write_file(
    path: Path, config: ModelConfig, recipe: str, weights: Mapping[str, Tensor], *, library: Ggml | None = None
) -> Path:
    """Write one recipe of one model."""
    write({path: plan(header(config), recipe)}, MemorySource(weights), threads=2, library=library)
    return path
