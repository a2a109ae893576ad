"""The rule `pretokenizer-unknown`: would llama.cpp cut text as the source's tokenizer does?

For a byte-level BPE that is a matter of its name (`pretokenizer_table.py`). A SentencePiece vocabulary has no name to
get wrong, but it has the spaces in front of a text, so there the ids themselves are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from hermetiq.errors import Finding, Severity
from hermetiq.rules import finding

from .pretokenizer_table import TABLE, identify
from .probes import probes
from .tokenizer import Tokenizer
from .tokenizer_guard import panics_refused
from .vocabulary import build_backend

_FIELD = "pre_tokenizer"


@panics_refused()
def pretokenizer_finding(tokenizer: Tokenizer, file: str) -> Finding | None:
    """The finding on `file`, where the tokenizer stands, or None where llama.cpp gives the same ids.

    It is a warning where only the space in front of a text differs, and a chat has the right ids all the same.
    """
    return _sentencepiece(tokenizer, file) if tokenizer.vocabulary.model == "llama" else _byte_level(tokenizer, file)


def _byte_level(tokenizer: Tokenizer, file: str) -> Finding | None:
    if tokenizer.vocabulary.pre:
        return None
    outcome = identify(tokenizer.backend)
    found = f"one near {outcome.nearest}, "
    if outcome.differing:
        found += f"but other cuts in {_listed(outcome.differing)}"
    else:
        found += "but with ignore_merges set the other way"
    names = ", ".join(entry.name for entry in TABLE)
    return finding("pretokenizer-unknown", file=file, field=_FIELD, found=found, expected=f"the behaviour of {names}")


def _sentencepiece(tokenizer: Tokenizer, file: str) -> Finding | None:
    theirs = build_backend(tokenizer.vocabulary, file=file)

    def differing(tag: str) -> list[str]:
        texts = [tag + text for text in probes()]
        mine = tokenizer.backend.encode_batch(texts, add_special_tokens=False)
        others = theirs.encode_batch(texts, add_special_tokens=False)
        return [text for text, one, other in zip(probes(), mine, others, strict=True) if one.ids != other.ids]

    plain = differing("")
    if not plain:
        return None
    tags = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values() if token.special]
    # Metaspace puts no space before a space, and with `first` none behind a tag; llama.cpp can do neither. In a chat
    # text stands behind a tag and begins with a role or a line end, so that harms nobody.
    harmful = [text for text in (differing(tags[0]) if tags else plain) if not text.startswith(" ")]
    severity: Severity = "error" if harmful else "warning"
    found = f"other ids than llama.cpp's for {_listed(harmful or plain)}"
    expected = "merges as in Llama" if harmful else "a space before every text, or before none"
    return finding("pretokenizer-unknown", file=file, field=_FIELD, found=found, expected=expected, severity=severity)


def _listed(texts: Sequence[str]) -> str:
    shortest = ", ".join(repr(text) for text in sorted(texts, key=len)[:3])
    return f"{len(texts)} of {len(probes())} test strings, as {shortest}"
