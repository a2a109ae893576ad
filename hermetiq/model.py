"""The plain data every part speaks: a decoder's shape and a vocabulary.

They stand below the engines so that `formats` can write what `checkpoint` has read without knowing where it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from math import prod
from typing import Any, Literal

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"
"""Names of the two matrices with a row for each token."""

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""The `model_type`s that hermetiq reads: dense decoders with RMSNorm, rotary attention and a gated MLP."""


def block_prefix(index: int) -> str:
    """What the names of a decoder block's tensors begin with."""
    return f"model.layers.{index}."


@dataclass(frozen=True)
class ModelConfig:
    """What `config.json` says of a dense decoder, in one spelling (both rope spellings are read, U29)."""

    family: Literal["llama", "mistral", "qwen2", "qwen3"]
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    rows: int
    """Rows of the embedding as config.json declares them (`vocab_size`)."""
    context_length: int
    norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    """Without `rope_theta`; None when the type is `default`."""
    tied: bool
    attention_bias: bool
    """q, k, v have a bias (always so in Qwen2)."""
    output_bias: bool
    """o has a bias (Llama with `attention_bias`)."""
    mlp_bias: bool
    qk_norm: bool
    """RMSNorm on each head of q and k (Qwen3)."""
    sliding_window: int | None

    @property
    def weights(self) -> int:
        """Weights in all tensors."""
        return sum(prod(shape) for shape in self.expected_tensors().values())

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor name of the checkpoint with its shape; `lm_head.weight` only where the head is not tied."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        tensors: dict[str, tuple[int, ...]] = {EMBEDDING: (self.rows, self.hidden)}
        for index in range(self.layers):
            block = block_prefix(index)
            tensors[block + "input_layernorm.weight"] = (self.hidden,)
            shapes = {"q": (q, self.hidden), "k": (kv, self.hidden), "v": (kv, self.hidden), "o": (self.hidden, q)}
            for letter, shape in shapes.items():
                tensors[f"{block}self_attn.{letter}_proj.weight"] = shape
                if self.output_bias if letter == "o" else self.attention_bias:
                    tensors[f"{block}self_attn.{letter}_proj.bias"] = shape[:1]
            if self.qk_norm:
                tensors[block + "self_attn.q_norm.weight"] = (self.head_dim,)
                tensors[block + "self_attn.k_norm.weight"] = (self.head_dim,)
            tensors[block + "post_attention_layernorm.weight"] = (self.hidden,)
            for part in ("gate", "up", "down"):
                shape = (self.hidden, self.intermediate) if part == "down" else (self.intermediate, self.hidden)
                tensors[f"{block}mlp.{part}_proj.weight"] = shape
                if self.mlp_bias:
                    tensors[f"{block}mlp.{part}_proj.bias"] = shape[:1]
        tensors[FINAL_NORM] = (self.hidden,)
        if not self.tied:
            tensors[HEAD] = (self.rows, self.hidden)
        return tensors


class TokenKind(IntEnum):
    """What a token is for, in GGUF's numbering (`tokenizer.ggml.token_type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Token:
    """One row of a vocabulary; `text` is the stored form (byte-level pieces keep their mapped letters)."""

    text: str
    kind: TokenKind
    score: float = 0.0


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as data: what GGUF stores of it, and what a tokenizer can be rebuilt from."""

    model: Literal["llama", "gpt2"]
    """`llama`: SentencePiece BPE with scores and byte fallback; `gpt2`: byte-level BPE with merges."""
    pre: str
    """llama.cpp's name of the pre-tokenizer; `default` for SentencePiece."""
    tokens: tuple[Token, ...]
    """Index is id."""
    merges: tuple[str, ...]
    """`left right`, in rank order; empty for SentencePiece."""
    add_space_prefix: bool


@dataclass(frozen=True)
class SpecialIds:
    """Every token id that an artifact states explicitly (U02, U73), so that no runtime has to guess."""

    eos: int
    eot: int | None
    eom: int | None
    bos: int | None
    pad: int | None
    unk: int | None
    add_bos: bool
    add_eos: bool
