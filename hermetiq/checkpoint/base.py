"""What a checkpoint is to the rest of the program, wherever it came from.

A folder, a `.gguf` file and a base with an adapter all answer the same questions, so the contract, the writers
and the verification are written once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermetiq.errors import Finding
from hermetiq.model import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    # The tokenizer's readers use what stands beside this module, so at run time it may not import them.
    from .tokenizer import Tokenizer


@dataclass(frozen=True)
class TensorInfo:
    """A stored tensor before it is read: `dtype` is the file's own name for it (`BF16`, `F32`, `Q4_1`)."""

    shape: tuple[int, ...]
    dtype: str
    file: str


@dataclass(frozen=True)
class Provenance:
    """Where the model comes from, as far as its own files say; artifacts carry it on."""

    name: str
    """Base name of the files made from it."""
    license: str | None = None
    base_models: tuple[str, ...] = ()
    merge_recipe: str | None = None
    """Text of `mergekit_config.yml` when the folder has one."""
    adapter: str | None = None
    """Name of the LoRA that was merged at load."""
    revision: str | None = None
    """Commit of the Hub snapshot."""
    tokenizer: str | None = None
    """Name of the adapter whose folder the tokenizer was taken from, in place of the base model's."""


class Checkpoint(ABC):
    """Lazy tensors, configuration and tokenizer of one model. Nothing is read before it is asked for."""

    path: Path
    config: Mapping[str, Any]
    """`config.json`; for a `.gguf` the same keys, restored from its metadata."""
    model: ModelConfig
    documents: Mapping[str, Any]
    """Parsed JSON by file name, of those present: config.json, generation_config.json, tokenizer_config.json,
    special_tokens_map.json, added_tokens.json, tokenizer.json. A `.gguf` source has only what its metadata states."""
    templates: Mapping[str, str]
    """Chat template text by where it stands: `chat_template.jinja`, `tokenizer_config.json`, or the `.gguf`'s name."""
    tokenizer: Tokenizer
    tokenizer_folder: Path | None = None
    """Where the tokenizer's files lie; None where the tokenizer was restored from a `.gguf`."""
    files: Mapping[str, bytes] | None = None
    """Contents of every small file of a checkpoint that is held in memory; None where they lie in its folders."""
    tensors: Mapping[str, TensorInfo]
    """Hugging Face names, in file order; `lm_head.weight` only if stored."""
    provenance: Provenance
    findings: tuple[Finding, ...]
    """What opening noticed and did not refuse (`source-quantized` of a quantized `.gguf`)."""

    @abstractmethod
    def load(self, name: str) -> Tensor:
        """Read one tensor in Hugging Face layout, in its stored float dtype (float32 if dequantized or merged).

        Raises:
            KeyError: no such tensor.
            Refusal: `source-incomplete`, the bytes cannot be read.
        """

    def unchanged(self) -> bool:
        """Whether an adapter was merged that changes nothing; read from the tensors.

        Raises:
            Refusal: `source-incomplete`, the bytes cannot be read.
        """
        return False

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 over the configuration, the tokenizer and the identity of every tensor file, as hex."""
