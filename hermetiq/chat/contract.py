"""The chat contract: how a model opens and closes a turn, found by using its tokenizer and template.

Fields of configuration files are claims. The contract is what happens: a two-turn chat is rendered, what closes the
assistant's turn is the terminator, and its encoding is the terminator's id. Source, artifact and runtime are each
read into this type, and two contracts are compared; that comparison is the heart of the program.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tag:
    """A piece of template text that must be one token, and the id it has."""

    text: str
    id: int


@dataclass(frozen=True)
class EosSource:
    """One place that states an EOS: `file`, `field`, the text or ids found there, and the ids they mean."""

    file: str
    field: str
    found: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class ChatContract:
    """Derived once from the source; every artifact and runtime is read back into the same type."""

    template: str
    """The chat template as text (the one that transformers uses)."""
    terminator: str
    terminator_id: int
    stop_ids: tuple[int, ...]
    """Sorted: the terminator and every EOS that any source states."""
    tags: tuple[Tag, ...]
    """The template's control tokens, terminator included, by id."""
    bos_token_id: int | None
    add_bos: bool
    """Whether encoding a rendered chat adds BOS; False when the template prints it (U19)."""
    pad_token_id: int | None
    unk_token_id: int | None
    tokens: int
    """Size of the vocabulary: highest id + 1."""
    rows: int
    """Rows of the embedding."""
    eos_sources: tuple[EosSource, ...]
    """Where each EOS was stated; provenance, not compared between source and artifact."""
