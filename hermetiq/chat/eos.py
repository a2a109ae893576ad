"""Every place of a checkpoint that states an EOS, with what it means in ids.

Each file has readers that believe it alone: vLLM `generation_config.json`, transformers `config.json`, converters
`tokenizer_config.json`. So all of them are collected, and each must hold the terminator (U01).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sentencepiece

from hermetiq.checkpoint.base import Checkpoint
from hermetiq.checkpoint.documents import stays_inside
from hermetiq.model import SpecialIds

SENTENCEPIECE = "tokenizer.model"


@dataclass(frozen=True)
class EosSource:
    """One place that states an EOS: `file`, `field`, the text or ids found there, and the ids they mean."""

    file: str
    field: str
    found: str
    ids: tuple[int, ...]

    @property
    def obeyed(self) -> bool:
        """Whether a runtime stops by it. Nobody takes EOS from the SentencePiece file once a configuration names it,
        and fine-tunes leave it as their base model had it.
        """
        return self.file != SENTENCEPIECE


def eos_sources(checkpoint: Checkpoint) -> tuple[EosSource, ...]:
    """What every file states, in the order of the files; places that state nothing are left out."""
    return (
        *_stated_ids(checkpoint.documents, "config.json"),
        *_stated_ids(checkpoint.documents, "generation_config.json"),
        *_stated_text(checkpoint, "tokenizer_config.json"),
        *_stated_text(checkpoint, "special_tokens_map.json"),
        *_added(checkpoint),
        *_appended(checkpoint.documents),
        *_sentencepiece(checkpoint),
        *_gguf(checkpoint),
    )


def token_text(value: Any) -> str | None:
    """The text of a special token as configuration files write it: plain, or an object with `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def id_list(value: Any) -> tuple[int, ...]:
    """Ids as configuration files write them: one, a list, or nothing."""
    values = value if isinstance(value, list) else [value]
    return tuple(item for item in values if isinstance(item, int) and not isinstance(item, bool))


def _stated_ids(documents: Mapping[str, Any], file: str) -> Iterator[EosSource]:
    value = documents.get(file, {}).get("eos_token_id")
    if value is not None:
        yield EosSource(file, "eos_token_id", str(value), id_list(value))


def _stated_text(checkpoint: Checkpoint, file: str) -> Iterator[EosSource]:
    text = token_text(checkpoint.documents.get(file, {}).get("eos_token"))
    if text is not None:
        token = checkpoint.tokenizer.id_of(text)
        yield EosSource(file, "eos_token", text, () if token is None else (token,))


def _added(checkpoint: Checkpoint) -> Iterator[EosSource]:
    """The id that added_tokens.json has for the EOS of the tokenizer; slow tokenizers and converters take it."""
    text = checkpoint.tokenizer.eos_token
    stated = checkpoint.documents.get("added_tokens.json", {}).get(text)
    if text is not None and isinstance(stated, int):
        yield EosSource("added_tokens.json", text, str(stated), (stated,))


def _appended(documents: Mapping[str, Any]) -> Iterator[EosSource]:
    """The token that the post-processor of tokenizer.json puts behind a text."""
    processor = documents.get("tokenizer.json", {}).get("post_processor") or {}
    for step in processor.get("processors") or [processor]:
        special = step.get("special_tokens") or {}
        last = (step.get("single") or [{}])[-1].get("SpecialToken") if isinstance(special, dict) else None
        if last:
            ids = id_list(special.get(last["id"], {}).get("ids"))
            yield EosSource("tokenizer.json", "post_processor", last["id"], ids)


def _sentencepiece(checkpoint: Checkpoint) -> Iterator[EosSource]:
    pieces = sentencepiece_of(checkpoint)
    if pieces is not None and pieces.eos_id() >= 0:
        yield EosSource(SENTENCEPIECE, "eos_id", pieces.id_to_piece(pieces.eos_id()), (pieces.eos_id(),))


def sentencepiece_file(checkpoint: Checkpoint) -> bytes | None:
    """The tokenizer.model that goes with the checkpoint's tokenizer; None without one."""
    if checkpoint.files is not None:
        return checkpoint.files.get(SENTENCEPIECE)
    path = checkpoint.path / SENTENCEPIECE
    if checkpoint.provenance.tokenizer is not None:
        return None  # An adapter brought its own tokenizer; the base's file is not its.
    return path.read_bytes() if path.is_file() and stays_inside(checkpoint.path, path) else None


def sentencepiece_of(checkpoint: Checkpoint) -> sentencepiece.SentencePieceProcessor | None:
    """The checkpoint's tokenizer.model; None without one, or where the file is of another kind."""
    data = sentencepiece_file(checkpoint)
    try:
        reader = sentencepiece.SentencePieceProcessor(model_proto=data) if data else None
        if reader:
            reader.id_to_piece(list(range(reader.get_piece_size())))  # Of a broken file some may be no text.
        return reader
    except (RuntimeError, UnicodeDecodeError):
        return None


def _gguf(checkpoint: Checkpoint) -> Iterator[EosSource]:
    """The end ids of a .gguf: llama.cpp stops at each, so together they are one statement."""
    special: SpecialIds | None = getattr(checkpoint, "special", None)
    if special is not None:
        ids = tuple(dict.fromkeys(i for i in (special.eos, special.eot, special.eom) if i is not None))
        yield EosSource(checkpoint.path.name, "tokenizer.ggml.eos_token_id", ", ".join(map(str, ids)), ids)
