"""The tokenizer files of a model folder, of which each generation of tools has left another set.

`tokenizer.json` says everything and wins. Without it `tokenizer.model` (SentencePiece) is read, or `vocab.json` with
`merges.txt`, and the added tokens come from the files beside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import sentencepiece
import tokenizers
from tokenizers import normalizers

from hermetiq.errors import Refusal
from hermetiq.model import Token, TokenKind, Vocabulary

from .documents import incomplete, stays_inside
from .probes import probes
from .tokenizer_guard import panics_refused, require_bounded
from .vocabulary import SENTENCEPIECE_PRE, SPACE, build_backend, complete, read_vocabulary

SPECIAL: Final = ("bos_token", "eos_token", "pad_token", "unk_token")
"""The fields that name special tokens, in `tokenizer_config.json` and `special_tokens_map.json`."""

_JSON = "tokenizer.json"
_CLASSES: Final = {"Qwen2Tokenizer": ("qwen2", normalizers.NFC()), "GPT2Tokenizer": ("gpt-2", None)}
"""Classes that read vocab.json and merges.txt: the pre-tokenizer and normalizer they add, which no file states."""


@dataclass(frozen=True)
class Source:
    """A tokenizer as the files of one folder give it, before its configuration names BOS and EOS."""

    backend: tokenizers.Tokenizer
    vocabulary: Vocabulary
    prefix: tuple[str, ...]
    """Tokens that encoding puts before a text where the configuration does not decide."""
    suffix: tuple[str, ...]
    special: Mapping[str, str]
    """Special tokens by field of `SPECIAL`, as far as the file itself names them."""


def read_source(folder: Path, documents: Mapping[str, Any]) -> Source:
    """The tokenizer of a model folder.

    Args:
        documents: the folder's parsed JSON by file name.

    Raises:
        Refusal: `source-incomplete`, there is no tokenizer, it cannot be read, or it is of a kind that llama.cpp has no
            model for.
    """
    for name, read in _READERS.items():
        path = folder / name
        if path.is_file():
            if not stays_inside(folder, path):
                raise _refusal(name, "a link out of the folder", "a file of the folder")
            return read(path, documents)
    found = "none of " + ", ".join(_READERS)
    raise _refusal(
        "tokenizer.json", found, "the tokenizer of the model", repair="Copy the base model's tokenizer files."
    )


def special_texts(documents: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by field, plain or as an object with `content`.

    As in transformers, `special_tokens_map.json` counts only where `tokenizer_config.json` lists no added tokens.
    """
    config = documents.get("tokenizer_config.json", {})
    fields = config if "added_tokens_decoder" in config else config | documents.get("special_tokens_map.json", {})
    texts = {name: _text(fields.get(name)) for name in SPECIAL}
    return {name: text for name, text in texts.items() if text is not None}


@panics_refused()
def parse_source(data: bytes, documents: Mapping[str, Any]) -> Source:
    """The tokenizer of a `tokenizer.json` of these bytes; `documents` has the same file parsed.

    Raises:
        Refusal: `source-incomplete`, it cannot be read, or is of a kind that llama.cpp has no model for.
    """
    document = documents.get(_JSON)
    try:
        backend = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # The library raises nothing more special.
        raise _refusal(_JSON, f"a file that does not load: {_first_line(error)}", "a tokenizer") from error
    if document is None:
        raise _refusal(_JSON, "unreadable JSON", "a tokenizer")
    require_bounded(document)
    backend.no_truncation()
    backend.no_padding()
    plain = backend.encode("x", add_special_tokens=False).tokens
    whole = backend.encode("x").tokens
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return Source(
        backend, read_vocabulary(document, backend), tuple(whole[:start]), tuple(whole[start + len(plain) :]), {}
    )


def _read_json(path: Path, documents: Mapping[str, Any]) -> Source:
    return parse_source(path.read_bytes(), documents)


def _read_sentencepiece(path: Path, documents: Mapping[str, Any]) -> Source:
    """The pieces with their own scores.

    The `sentencepiece` library does not say whether a file is BPE or unigram, nor how it normalizes. So a tokenizer is
    built of the pieces as llama.cpp understands them, and the two must give the same ids.
    """
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        tokens = {
            index: Token(pieces.id_to_piece(index), _kind(pieces, index), pieces.get_score(index))
            for index in range(pieces.get_piece_size())
        }
    # A broken file's pieces may be no text, and so may what the library quotes of it.
    except (RuntimeError, OSError, UnicodeDecodeError) as error:
        raise _refusal(path.name, "a file that sentencepiece cannot read", "a SentencePiece model") from error
    prefixed = any(piece.startswith(SPACE) for piece in pieces.encode("x", out_type=str))
    bare = Vocabulary("llama", SENTENCEPIECE_PRE, complete(tokens, path.name), (), prefixed)
    backend = build_backend(bare, file=path.name)
    for text in probes():
        if backend.encode(text, add_special_tokens=False).ids != pieces.encode(text):
            repair = "Save the tokenizer with transformers, which writes tokenizer.json, and export that folder."
            raise _refusal(path.name, f"another segmentation of {text!r}", "BPE as in Llama and Mistral", repair=repair)
    vocabulary = replace(bare, tokens=complete(tokens | _added(documents, tokens), path.name))
    ids = {"bos_token": pieces.bos_id(), "eos_token": pieces.eos_id(), "unk_token": pieces.unk_id()}
    special = {name: tokens[index].text for name, index in ids.items() if index in tokens}
    bos = {**special, **special_texts(documents)}.get("bos_token")
    return Source(build_backend(vocabulary, file=path.name), vocabulary, () if bos is None else (bos,), (), special)


def _read_merges(path: Path, documents: Mapping[str, Any]) -> Source:
    """`vocab.json` with `merges.txt`, whose pre-tokenizer only the name of a class tells."""
    name = str(documents.get("tokenizer_config.json", {}).get("tokenizer_class")).removesuffix("Fast")
    if name not in _CLASSES:
        expected = "tokenizer.json, or the class " + " or ".join(_CLASSES)
        raise _refusal("tokenizer_config.json", f"the class {name!r}", expected, field="tokenizer_class")
    pre, normalizer = _CLASSES[name]
    lines = path.with_name("merges.txt")
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
        tokens = {index: Token(text, TokenKind.NORMAL) for text, index in texts.items() if isinstance(index, int)}
        stated = lines.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError, AttributeError) as error:
        raise _refusal(
            path.name, f"files that do not load: {_first_line(error)}", "vocab.json and merges.txt"
        ) from error
    merges = tuple(line for line in stated if line and not line.startswith("#version"))
    vocabulary = Vocabulary("gpt2", pre, complete(tokens | _added(documents, tokens), path.name), merges, False)
    backend = build_backend(vocabulary, file=lines.name)
    if normalizer is not None:
        backend.normalizer = normalizer
    return Source(backend, vocabulary, (), (), {})


_READERS: Final[Mapping[str, Callable[[Path, Mapping[str, Any]], Source]]] = {
    _JSON: _read_json,
    "tokenizer.model": _read_sentencepiece,
    "vocab.json": _read_merges,
}
"""In order of preference."""


def _added(documents: Mapping[str, Any], tokens: Mapping[int, Token]) -> dict[int, Token]:
    """Added tokens of the files beside a SentencePiece or merges file, by id.

    `added_tokens.json` counts only without `added_tokens_decoder`, as in transformers; it does not say which of its
    tokens are special, so those are that another field names.
    """
    config = documents.get("tokenizer_config.json", {})
    try:
        if "added_tokens_decoder" in config:
            stated = config["added_tokens_decoder"].items()
            described = [(int(index), entry["content"], bool(entry.get("special"))) for index, entry in stated]
        else:
            named = _named(documents)
            stated = documents.get("added_tokens.json", {}).items()
            described = [(int(index), text, text in named) for text, index in stated]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        found = f"added tokens of another form: {_first_line(error)}"
        raise _refusal("tokenizer_config.json", found, "ids with their texts", field="added_tokens_decoder") from error
    added = {}
    for index, text, special in described:
        kind = TokenKind.CONTROL if special else TokenKind.USER_DEFINED
        if index in tokens and tokens[index].kind is TokenKind.UNKNOWN:
            kind = TokenKind.UNKNOWN
        added[index] = Token(str(text), kind)
    return added


def _named(documents: Mapping[str, Any]) -> set[str]:
    """Every text that a configuration names as a special token; the lists of further ones may be lists or objects."""
    fields = documents.get("tokenizer_config.json", {}) | documents.get("special_tokens_map.json", {})
    names = set(special_texts(documents).values())
    for key in ("additional_special_tokens", "extra_special_tokens"):
        values = fields.get(key) or []
        stated = values.values() if isinstance(values, Mapping) else values if isinstance(values, list) else ()
        texts = (_text(value) for value in stated)
        names |= {text for text in texts if text is not None}
    return names


def _kind(pieces: sentencepiece.SentencePieceProcessor, index: int) -> TokenKind:
    questions = {
        TokenKind.UNKNOWN: pieces.is_unknown,
        TokenKind.CONTROL: pieces.is_control,
        TokenKind.UNUSED: pieces.is_unused,
        TokenKind.BYTE: pieces.is_byte,
    }
    return next((kind for kind, holds in questions.items() if holds(index)), TokenKind.NORMAL)


def _text(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, Mapping) else value
    return content if isinstance(content, str) else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _refusal(file: str, found: str, expected: str, *, field: str = "", repair: str | None = None) -> Refusal:
    return Refusal(incomplete(file, found=found, expected=expected, field=field, repair=repair))
