"""A tokenizer as hermetiq uses it: the `tokenizers` backend that encodes, and the vocabulary as data.

transformers' AutoTokenizer is not used: it picks a class by name, and several classes rebuild the pipeline from parts
instead of reading `tokenizer.json`. What the files say is what is read here; a test holds the ids against transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from hermetiq.errors import Refusal
from hermetiq.model import SpecialIds, Vocabulary
from hermetiq.rules import finding

from .tokenizer_files import Source, parse_source, read_source, special_texts
from .tokenizer_guard import panics_refused
from .vocabulary import build_backend


@dataclass(frozen=True)
class Tokenizer:
    """How a checkpoint turns text into ids. The special tokens are texts as its files name them."""

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
        with panics_refused():
            ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        if not add_special:
            return ids
        first = self._special(self.bos_token) if self.add_bos else []
        last = self._special(self.eos_token) if self.add_eos else []
        return [*first, *ids, *last]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of `ids`, without special tokens if `skip_special`."""
        with panics_refused():
            return str(self.backend.decode(list(ids), skip_special_tokens=skip_special))

    def id_of(self, text: str) -> int | None:
        """Id of the token whose text is exactly `text` (added tokens included), or None."""
        index: int | None = self.backend.token_to_id(text)
        return index

    def _special(self, text: str | None) -> list[int]:
        index = None if text is None else self.id_of(text)
        return [] if index is None else [index]


def from_folder(folder: Path, documents: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a model folder.

    Whether encoding adds BOS and EOS is what `add_bos_token` and `add_eos_token` of `tokenizer_config.json` say, as for
    transformers 4 and every GGUF converter; what they leave open, the post-processor of `tokenizer.json` decides
    (transformers 5 asks it alone). A bare `tokenizer.model` gets BOS.

    Args:
        documents: the folder's parsed JSON by file name.

    Raises:
        Refusal: `source-incomplete`, there is no tokenizer, it cannot be read, or it is not a BPE.
    """
    return _completed(read_source(folder, documents), documents)


def from_file(data: bytes, documents: Mapping[str, Any]) -> Tokenizer:
    """`from_folder`, for a `tokenizer.json` of these bytes whatever lies in a folder. Raises as that does."""
    return _completed(parse_source(data, documents), documents)


def _completed(source: Source, documents: Mapping[str, Any]) -> Tokenizer:
    config = documents.get("tokenizer_config.json", {})
    special = {**source.special, **special_texts(documents)}
    adds = {}
    for field, put in (("bos_token", source.prefix), ("eos_token", source.suffix)):
        stated = config.get(f"add_{field}")
        adds[field] = stated if isinstance(stated, bool) else bool(put)
        if put and not isinstance(stated, bool):
            # What is really put there counts, whatever the configuration calls it.
            special[field] = _only(put)
    return Tokenizer(
        backend=source.backend,
        vocabulary=source.vocabulary,
        add_bos=adds["bos_token"] and "bos_token" in special,
        add_eos=adds["eos_token"] and "eos_token" in special,
        bos_token=special.get("bos_token"),
        eos_token=special.get("eos_token"),
        pad_token=special.get("pad_token"),
        unk_token=special.get("unk_token"),
    )


def from_vocabulary(vocabulary: Vocabulary, ids: SpecialIds, *, file: str = "vocabulary") -> Tokenizer:
    """The tokenizer that llama.cpp makes of a GGUF's vocabulary; `file` names it in messages.

    Raises:
        Refusal: `pretokenizer-unknown`, or `source-incomplete` where a merge makes no token.
    """

    def text(index: int | None) -> str | None:
        return vocabulary.tokens[index].text if index is not None and index < len(vocabulary.tokens) else None

    return Tokenizer(
        backend=build_backend(vocabulary, file=file),
        vocabulary=vocabulary,
        add_bos=ids.add_bos,
        add_eos=ids.add_eos,
        bos_token=text(ids.bos),
        eos_token=text(ids.eos),
        pad_token=text(ids.pad),
        unk_token=text(ids.unk),
    )


def _only(tokens: tuple[str, ...]) -> str:
    """The one token that the post-processor puts on one side of a text."""
    if len(tokens) > 1:
        raise Refusal(
            finding(
                "source-incomplete",
                file="tokenizer.json",
                field="post_processor",
                found=f"{' '.join(tokens)} on one side of a text",
                expected="at most one token",
            )
        )
    return tokens[0]
