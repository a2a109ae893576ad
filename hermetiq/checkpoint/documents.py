"""The small files of a model folder: its JSON, its templates, and what they say about where it comes from.

All of it is untrusted text. A file that cannot be read becomes a finding with its name and position, and what a
repository card has wrong never stops an export (U65).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeGuard, TypeVar

import yaml  # type: ignore[import-untyped]

from hermetiq.errors import Finding, Refusal
from hermetiq.rules import finding

from .base import Provenance

T = TypeVar("T")
Read = tuple[T, tuple[Finding, ...]]
"""What could be read, and what is wrong with the rest."""

DOCUMENTS: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
)
TEMPLATE: Final = "chat_template.jinja"
CARD: Final = "README.md"
RECIPE: Final = "mergekit_config.yml"

POINTER: Final = "version https://git-lfs"
"""How the small file begins that git keeps in the place of a large one."""
POINTER_REPAIR: Final = "Fetch the file with `git lfs pull`, or download it from the Hub again."

_MOST_BYTES = 1 << 28
"""Ten times the largest tokenizer.json in use; what is larger would only fill the memory."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_UNTELLING = re.compile(r"|model|models|merged|output|checkpoint-\d+|final|weights|main", re.IGNORECASE)
"""Folder names that say nothing about the model inside."""


def incomplete(file: str, *, found: str, expected: str, field: str = "", repair: str | None = None) -> Finding:
    """A `source-incomplete` finding, the one that reading files makes most."""
    return finding("source-incomplete", file=file, field=field, found=found, expected=expected, repair=repair)


def link_out(file: str) -> Finding:
    """The finding for a file that `stays_inside` denies."""
    return incomplete(file, found="a link out of the folder", expected="a file of the folder")


def stays_inside(folder: Path, path: Path) -> bool:
    """Whether `path`, links followed, lies in `folder`.

    A snapshot of the Hub's cache is made of links into the `blobs` folder two levels up; those count as inside. Any
    other link out of the folder does not: what it points to could end up in a published artifact.
    """
    root = folder.resolve()
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append((root.parent.parent / "blobs").resolve())
    try:
        target = path.resolve()
    except (OSError, RuntimeError):
        # A link that leads to itself.
        return False
    return any(target.is_relative_to(root) for root in roots)


def obstacle(path: Path) -> str | None:
    """What stands at `path` in the place of a readable file; None for a file.

    Asked before anything is opened, because opening a pipe waits for its other end.
    """
    if path.is_file():
        return None
    if path.is_dir():
        return "a folder"
    if path.exists():
        return "a device or a pipe"
    return "a link to a file that is not there" if path.is_symlink() else "no such file"


def read_bytes(folder: Path, name: str) -> bytes | None:
    """The bytes of one file of `folder`; None where there is no such file.

    Raises:
        Refusal: `source-incomplete`, it lies outside the folder, is too large, or only points to the file.
    """
    path = folder / name
    if not path.is_file():
        return None
    if not stays_inside(folder, path):
        raise Refusal(link_out(name))
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise Refusal(incomplete(name, found=f"{size} bytes", expected=f"at most {_MOST_BYTES}"))
    data = path.read_bytes()
    if data.startswith(POINTER.encode()):
        found = "a Git LFS pointer"
        raise Refusal(incomplete(name, found=found, expected="the file itself", repair=POINTER_REPAIR))
    return data


def read_json(folder: Path, name: str) -> Read[dict[str, Any] | None]:
    """The object in one JSON file of `folder`; None without a finding where there is no such file."""
    return _read(folder, name, _parse_object)


def read_documents(folder: Path) -> Read[dict[str, dict[str, Any]]]:
    """Those of `DOCUMENTS` that the folder has, parsed."""
    parsed, findings = {}, list[Finding]()
    for name in DOCUMENTS:
        document, wrong = read_json(folder, name)
        findings += wrong
        if document is not None:
            parsed[name] = document
    return parsed, tuple(findings)


def read_templates(folder: Path, documents: Mapping[str, Mapping[str, Any]]) -> Read[dict[str, str]]:
    """Chat templates by the file that holds them; of an inline list of templates, the one named `default`."""
    text, findings = _read(folder, TEMPLATE, str)
    templates, wrong = templates_of(text, documents)
    return templates, (*findings, *wrong)


def templates_of(text: str | None, documents: Mapping[str, Mapping[str, Any]]) -> Read[dict[str, str]]:
    """`read_templates`, with the contents of `chat_template.jinja` in the place of a folder."""
    templates = {} if text is None else {TEMPLATE: text}
    file = "tokenizer_config.json"
    inline = documents.get(file, {}).get("chat_template")
    if isinstance(inline, list):
        named = [entry for entry in inline if isinstance(entry, Mapping) and entry.get("name") == "default"]
        inline = named[0].get("template") if named else None
    if isinstance(inline, str):
        templates[file] = inline
    elif inline is not None:
        expected = "text, or a list of templates"
        return templates, (incomplete(file, field="chat_template", found=repr(inline)[:80], expected=expected),)
    return templates, ()


def read_provenance(folder: Path, documents: Mapping[str, Mapping[str, Any]]) -> Read[Provenance]:
    """Name, licence, parents, merge recipe and commit, as far as the folder states them.

    Findings are warnings: an unreadable card is no reason not to export.
    """
    recipe, wrong_recipe = _read(folder, RECIPE, str)
    card, wrong_card = _read(folder, CARD, _front_matter)
    stated = card or {}
    parents = stated.get("base_model")
    license_ = stated.get("license_name") or "other" if stated.get("license") == "other" else stated.get("license")
    name, revision = _identity(folder, documents.get("config.json", {}))
    provenance = Provenance(
        name=name,
        license=license_ if _is_name(license_) else None,
        base_models=tuple(each for each in (parents if isinstance(parents, list) else [parents]) if _is_name(each)),
        merge_recipe=recipe,
        revision=revision,
    )
    return provenance, tuple(replace(each, severity="warning") for each in (*wrong_recipe, *wrong_card))


def file_name(text: str) -> str:
    """`text` as a part of a file name: letters, digits, dot, dash and underscore; never empty, never hidden."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-") or "model"


def _identity(folder: Path, config: Mapping[str, Any]) -> tuple[str, str | None]:
    """The model's name and, in the Hub's cache (`models--ORG--NAME/snapshots/COMMIT`), its commit."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name):
        return file_name(folder.parent.parent.name.rpartition("--")[2]), folder.name
    stated = config.get("_name_or_path")
    if _UNTELLING.fullmatch(folder.name) and isinstance(stated, str) and stated.strip("/."):
        return file_name(stated.rstrip("/").rpartition("/")[2]), None
    return file_name(folder.name), None


def _is_name(value: object) -> TypeGuard[str]:
    """YAML, too, can spell half of a UTF-16 pair."""
    return isinstance(value, str) and bool(value.strip()) and not re.search(r"[\ud800-\udfff]", value)


def _read(folder: Path, name: str, parse: Callable[[str], T]) -> Read[T | None]:
    """Read and parse one text file: (None, ()) where it does not exist, (None, finding) where it cannot be used."""
    path = folder / name
    try:
        if not path.exists() and not path.is_symlink():
            return None, ()
        if not stays_inside(folder, path):
            return None, (link_out(name),)
        if found := obstacle(path):
            return None, (incomplete(name, found=found, expected="a readable file"),)
        if (size := path.stat().st_size) > _MOST_BYTES:
            return None, (incomplete(name, found=f"{size} bytes", expected=f"at most {_MOST_BYTES}"),)
        # Text mode turns CRLF into LF, as transformers does for templates.
        text = path.read_text(encoding="utf-8")
        if text.startswith(POINTER):
            return None, (
                incomplete(name, found="a Git LFS pointer", expected="the file itself", repair=POINTER_REPAIR),
            )
        return parse(text), ()
    except json.JSONDecodeError as error:
        found = f"{error.msg} at line {error.lineno}, column {error.colno}"
    except UnicodeDecodeError as error:
        found = f"a byte that is not UTF-8 at position {error.start}"
    except OSError as error:
        found = error.strerror or type(error).__name__
    except RecursionError:
        found = "brackets nested too deep"
    except ValueError as error:
        found = str(error)
    return None, (incomplete(name, found=found, expected="a readable file"),)


def _parse_object(text: str) -> dict[str, Any]:
    document = json.loads(text, object_pairs_hook=_without_duplicates)
    if not isinstance(document, dict):
        raise ValueError(f"{type(document).__name__} instead of an object")
    if _SURROGATE.search(text):
        _require_unicode(document)
    return document


def _require_unicode(document: dict[str, Any]) -> None:
    """JSON can spell half of a UTF-16 pair, which no text holds and no tokenizer takes."""
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{error.object[error.start]!r}, which is no character") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON readers disagree on which of two equal keys counts, so such a file means two things."""
    document = dict(pairs)
    if len(document) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in document if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} twice in one object")
    return document


def _front_matter(text: str) -> dict[str, Any]:
    """The YAML block that opens a repository card."""
    block = re.match(r"\ufeff?\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", text, re.DOTALL)
    try:
        data = yaml.safe_load(block[1]) if block else None
    # Of an explicit tag whose value does not fit (`!!int ''`), PyYAML lets the failure of its own code through.
    except (yaml.YAMLError, IndexError, KeyError, AttributeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError(f"YAML that does not parse{f' at line {mark.line + 2}' if mark else ''}") from error
    return data if isinstance(data, dict) else {}
