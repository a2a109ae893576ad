"""A tokenizer as hermetiq uses it: the `tokenizers` backend that encodes, and the vocabulary as data.

STUB: signatures only; being written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers

from hermetiq.model import Vocabulary


@dataclass(frozen=True)
class Tokenizer:
    backend: tokenizers.Tokenizer
    vocabulary: Vocabulary
    """`pre` is empty where the pre-tokenizer is not one that llama.cpp knows (rule `pretokenizer-unknown`)."""
    add_bos: bool
    """Encoding with special tokens puts BOS first."""
    add_eos: bool
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Ids of `text`; tags are recognised, BOS and EOS are added only on request and by the tokenizer's policy."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        raise NotImplementedError

    def id_of(self, text: str) -> int | None:
        """Id of the token whose text is exactly `text` (added tokens included), or None."""
        raise NotImplementedError
