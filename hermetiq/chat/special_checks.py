"""The lists of further special tokens, whose shape changed from one version of transformers to the next (U41).

transformers 4 knows a list `additional_special_tokens`, and an object `extra_special_tokens` of tokens by name.
transformers 5 takes a list under that key, too, on which version 4 fails. Every version adds a listed text that is no
token to the vocabulary, behind the last id, where the embedding has no row for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from hermetiq.chat.eos import token_text
from hermetiq.chat.subject import Subject
from hermetiq.checkpoint.shards import listed
from hermetiq.checkpoint.tokenizer import Tokenizer
from hermetiq.errors import Finding, Severity
from hermetiq.rules import finding

OLD: Final = "additional_special_tokens"
NEW: Final = "extra_special_tokens"
FILES: Final = ("tokenizer_config.json", "special_tokens_map.json")


def special_lists(subject: Subject) -> Iterator[Finding]:
    """Lists of another shape than every reader takes, and texts in them that are no tokens."""
    tokenizer = subject.checkpoint.tokenizer
    for file in FILES:
        document = subject.checkpoint.documents.get(file, {})
        for key, shape, expected in ((OLD, list, "a list of tokens"), (NEW, Mapping, "an object of tokens by name")):
            value = document.get(key)
            if not value:
                continue
            if not isinstance(value, shape):
                # A list is what transformers 5 itself writes; anything else no version takes.
                severity: Severity | None = "warning" if isinstance(value, list) else None
                found = f"{type(value).__name__}: {value!r:.80}"
                yield finding("special-lists", file=file, field=key, found=found, expected=expected, severity=severity)
            elif strange := [entry for entry in _entries(value) if not _is_token(entry, tokenizer)]:
                found = f"{listed(map(str, map(token_text, strange)))}, no token"
                yield finding("special-lists", file=file, field=key, found=found, expected="tokens of tokenizer.json")


def with_plain_lists(document: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """`document` with its lists in the shapes that every reader takes, and without texts that are no tokens."""
    kept = {key: value for key, value in document.items() if key not in (OLD, NEW) or not value}
    named, unnamed = document.get(NEW), _entries(document.get(OLD))
    if isinstance(named, Mapping):
        known = {name: entry for name, entry in named.items() if _is_token(entry, tokenizer)}
        kept |= {NEW: known} if known else {}
    else:
        unnamed += [entry for entry in _entries(named) if token_text(entry) not in map(token_text, unnamed)]
    known_entries = [entry for entry in unnamed if _is_token(entry, tokenizer)]
    return {**kept, **({OLD: known_entries} if known_entries else {})}


def _is_token(entry: Any, tokenizer: Tokenizer) -> bool:
    text = token_text(entry)
    return text is not None and tokenizer.id_of(text) is not None


def _entries(value: Any) -> list[Any]:
    """The tokens of a list in any of its shapes: a list, an object, or one text."""
    entries = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
    return [entry for entry in entries if token_text(entry) is not None]
