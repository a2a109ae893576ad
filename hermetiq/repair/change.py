"""What a repair changed, field by field, with the value before and after.

The account is not kept by the code that repairs. It is made by comparing the files before and after, so nothing can
be changed and go untold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from hermetiq.checkpoint.documents import TEMPLATE
from hermetiq.rules import RULES

ABSENT: Final = "nothing"
"""The value of a field or file that is not there."""
_LONGEST = 160


@dataclass(frozen=True)
class Change:
    """One field that was `old` in the source and is `new` in the copy."""

    rule: str
    """The rule that the source broke here; empty where it broke none and only some readers would have been misled."""
    file: str
    field: str
    """Dotted; empty for a whole file."""
    old: str
    new: str
    why: str


@dataclass(frozen=True)
class _Reason:
    why: str
    """Why the change is made where the source broke no rule."""
    rules: tuple[str, ...] = ()
    """Rules that such a change can repair, the likeliest first."""


_STOPS = _Reason("Each reader takes its stop tokens from another file.", ("eos-mismatch",))
_LISTS = _Reason("Versions of transformers take other shapes of these lists.", ("special-lists",))
_NO_ROW = _Reason("A token without a row was taken out.", ("vocab-overflow",))
_ROPE = _Reason("transformers 4 reads rope_theta and rope_scaling, transformers 5 rope_parameters.", ("rope-form",))
_DTYPE = _Reason("transformers 4 reads torch_dtype, transformers 5 dtype.")
_TEMPLATE = _Reason(
    f"Some readers know {TEMPLATE} only, others tokenizer_config.json only.", ("template-missing", "template-conflict")
)
_AROUND = _Reason(
    "What encoding adds is said in two places, and readers differ in which they believe.",
    ("double-bos", "eos-mismatch"),
)
_ADDED = "Slow tokenizers and converters read the added tokens here."
_PERSONAL = _Reason("It points to somebody's own folders.")
_DEFAULT = _Reason("Readers have other defaults, or look in another file.")

_REASONS: Final[Mapping[str, _Reason]] = MappingProxyType(
    {
        "eos_token_id": _STOPS,
        "eos_token": _STOPS,
        "_from_model_config": _Reason("With it transformers takes the ids of config.json in the place of these."),
        "rope_theta": _ROPE,
        "rope_scaling": _ROPE,
        "rope_parameters": _ROPE,
        "dtype": _DTYPE,
        "torch_dtype": _DTYPE,
        "chat_template": _TEMPLATE,
        TEMPLATE: _TEMPLATE,
        "tokenizer_class": _Reason("transformers 5 rebuilds other classes from the vocabulary.", ("tokenizer-class",)),
        "added_tokens": _Reason(
            "A tag that is not special is shown to readers as text.", ("token-split", "vocab-overflow")
        ),
        "added_tokens_decoder": _Reason(_ADDED, ("spm-stale", "vocab-overflow")),
        "added_tokens.json": _Reason(_ADDED, ("eos-mismatch", "vocab-overflow")),
        "tokenizer.model": _Reason("It disagrees with tokenizer.json, and some readers prefer it.", ("spm-stale",)),
        "add_bos_token": _AROUND,
        "add_eos_token": _AROUND,
        "post_processor": _AROUND,
        "merges": _Reason("Only tokenizers since 0.20 reads merges as pairs."),
        "vocab_size": _Reason("It is the number of rows of the embedding.", ("vocab-rows", "vocab-overflow")),
        "tie_word_embeddings": _Reason("The stored head is not the embedding.", ("tie-conflict", "head-tie")),
        "additional_special_tokens": _LISTS,
        "extra_special_tokens": _LISTS,
        "vocab": _NO_ROW,
        "_name_or_path": _PERSONAL,
        "_commit_hash": _PERSONAL,
    }
)
"""By field or file."""


def file_changes(
    before: Mapping[str, bytes], after: Mapping[str, bytes], broken: Iterable[str]
) -> tuple[tuple[Change, ...], dict[str, bytes]]:
    """The changes from one set of small files to another, and the second set without changes of mere spelling.

    A file that says the same before and after keeps its bytes.

    Args:
        before: contents by file name; JSON files hold an object.
        broken: rules that the source breaks; a change is put down to one of these only.
    """
    rules = frozenset(broken)
    changes, kept = list[Change](), dict[str, bytes]()
    for name in (*after, *(name for name in before if name not in after)):
        found = [_change(name, *each, rules) for each in _differences(name, before.get(name), after.get(name))]
        changes += found
        if name in after:
            kept[name] = after[name] if found or name not in before else before[name]
    return tuple(changes), kept


def _change(file: str, field: str, old: Any, new: Any, broken: frozenset[str]) -> Change:
    below = field.removeprefix("model.")
    parts = [below.partition(".")[0], below, file]
    reason = next((_REASONS[part] for part in parts if part in _REASONS), _DEFAULT)
    rule = next((rule for rule in reason.rules if rule in broken), "")
    return Change(rule, file, field, _shown(old), _shown(new), RULES[rule].why if rule else reason.why)


def _differences(name: str, old: bytes | None, new: bytes | None) -> Iterator[tuple[str, Any, Any]]:
    """Field, old and new value of everything that differs; None for what is not there."""
    if old is None or new is None:
        yield "", old and "a file", new and "a file"
    elif name.endswith(".json"):
        yield from _fields(json.loads(old), json.loads(new), "")
    elif _text(old) != _text(new):
        yield "", _text(old), _text(new)


def _text(data: bytes) -> str:
    """Contents as transformers reads a template: ends of lines make no difference."""
    return data.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")


def _fields(old: Any, new: Any, field: str) -> Iterator[tuple[str, Any, Any]]:
    if (entries := _by_text(old)) is not None and (others := _by_text(new)) is not None:
        old, new = entries, others
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*new, *old)):
            yield from _fields(old.get(key), new.get(key), f"{field}.{key}" if field else key)
    elif old != new:
        yield field, old, new


def _by_text(value: Any) -> dict[str, Any] | None:
    """The list of added tokens by their texts, so that one token is one change."""
    if isinstance(value, list) and value and all(isinstance(each, Mapping) and "content" in each for each in value):
        return {str(each["content"]): each for each in value}
    return None


def _shown(value: Any) -> str:
    """A value in one line; of a long one the beginning, the length and a digest that tells it from others."""
    if value is None:
        return ABSENT
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= _LONGEST:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text[: _LONGEST // 2]} … ({len(text)} characters, sha256 {digest})"
