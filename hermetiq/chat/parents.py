"""The models that a merge was made of, as far as they lie on this machine.

Whether a merge kept its tags can be told from its parents alone: the merge itself shows a token with a row, not that
the row belonged to another token. The recipe that mergekit leaves in the folder names parents, and the user gives those
that are to be compared: no folder is opened because a file of the checkpoint says so, and nothing is downloaded. Of a
parent only the tokenizer is read until a row has to be compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from hermetiq.checkpoint import open_checkpoint
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.checkpoint.documents import RECIPE, read_documents
from hermetiq.checkpoint.hub import is_hub_id
from hermetiq.checkpoint.tokenizer import Tokenizer, from_folder
from hermetiq.errors import Finding, HermetiqError
from hermetiq.rules import finding

_LONGEST_RECIPE = 1 << 17
"""Characters; ten times the recipe of a merge that lists every layer of four parents."""
_MOST_PARENTS = 32
_ENTRIES: Final = (("models", "model"), ("sources", "model"), ("experts", "source_model"))
"""Lists of a recipe, and the key under which each entry names a parent."""


@dataclass(frozen=True)
class Parent:
    """One parent of a merge: where it is, by the `name` that the user gives it, and its tokenizer."""

    name: str
    tokenizer: Tokenizer

    def open(self) -> Checkpoint:
        """The parent with its weights. Raises as `open_checkpoint` does."""
        return open_checkpoint(self.name)


@dataclass(frozen=True)
class Parents:
    """The parents that could be read, and what is known of the way they were merged."""

    read: tuple[Parent, ...] = ()
    findings: tuple[Finding, ...] = ()
    """`merge-vocab`, as information: each parent that was not compared, and why."""
    remapped: bool = False
    """Whether the recipe had the tokenizers joined, so that rows should have moved along with their tokens."""


def read_parents(checkpoint: Checkpoint, given: Sequence[str] = ()) -> Parents:
    """The parents `given`; where none are, those that the checkpoint's recipe names are told, and not opened.

    Raises:
        HermetiqError: a parent that was given is neither here nor a Hub id.
    """
    for name in given:
        if not _is_here(name) and not is_hub_id(name):
            raise HermetiqError("no such parent", where=name, remedy="give a model folder or a .gguf file")
    recipe = _parse(checkpoint.provenance.merge_recipe or "")
    remapped = recipe is not None and any(recipe.get(key) for key in ("tokenizer_source", "tokenizer"))
    if not given:
        return Parents(findings=tuple(_uncompared(recipe)), remapped=remapped)
    names, parents, findings = list(dict.fromkeys(given)), list[Parent](), list[Finding]()
    for name in names[:_MOST_PARENTS]:
        try:
            parents.append(_read(name))
        except HermetiqError as error:
            findings.append(_not_compared("--parent", name, error.what))
    return Parents(tuple(parents), (*findings, *_beyond("--parent", names)), remapped)


def recipe_parents(text: str) -> tuple[str, ...]:
    """The parents that a mergekit recipe names, by their Hub ids or paths; none for what is no recipe."""
    return tuple(dict.fromkeys(_named(_parse(text) or {})))[:_MOST_PARENTS]


def _uncompared(recipe: Mapping[str, Any] | None) -> Iterator[Finding]:
    """The parents that a recipe names."""
    if recipe is None:
        found = "a recipe that is too long, or no YAML mapping"
        yield finding("merge-vocab", file=RECIPE, found=found, expected="names of parents", severity="info")
        return
    names = list(dict.fromkeys(_named(recipe)))
    for name in names[:_MOST_PARENTS]:
        yield _not_compared(RECIPE, name, "only a file of the checkpoint names it")
    yield from _beyond(RECIPE, names)


def _beyond(file: str, names: Sequence[str]) -> Iterator[Finding]:
    if beyond := names[_MOST_PARENTS:]:
        yield _not_compared(file, f"{beyond[0]} and those after it", f"more than {_MOST_PARENTS} parents")


def _parse(text: str) -> Mapping[str, Any] | None:
    """The recipe with every scalar as text, so that no tag in it builds anything; None for what is no recipe."""
    if len(text) > _LONGEST_RECIPE:
        return None
    try:
        recipe = yaml.load(text, Loader=yaml.BaseLoader) if text.strip() else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return recipe if isinstance(recipe, dict) else None


def _named(recipe: Mapping[str, Any]) -> Iterator[str]:
    """Paths and Hub ids of the parents, the base model first; a LoRA or a revision behind them is dropped."""
    slices = [each for each in _list(recipe, "slices") if isinstance(each, Mapping)]
    entries = [
        entry.get(key) for part in (recipe, *slices) for field, key in _ENTRIES for entry in _list(part, field)
        if isinstance(entry, Mapping)
    ]  # fmt: skip
    for reference in (recipe.get("base_model"), *entries):
        stated = reference
        # mergekit writes {model: {path: NAME}, lora: …} where NAME alone would do.
        for key in ("model", "path"):
            stated = stated.get(key) if isinstance(stated, Mapping) else stated
        if isinstance(stated, str) and (name := re.split("[+@]", stated)[0].strip()):
            yield name


def _list(mapping: Mapping[str, Any], key: str) -> list[Any]:
    value = mapping.get(key)
    return value if isinstance(value, list) else []


def _read(name: str) -> Parent:
    if not _is_here(name):
        raise HermetiqError("not on this machine")
    path = Path(name)
    if path.is_dir():
        # Its weights may be of any kind, or gone: the tokenizer is enough to compare ids.
        return Parent(name, from_folder(path, read_documents(path)[0]))
    return Parent(name, open_checkpoint(path).tokenizer)


def _is_here(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False


def _not_compared(file: str, name: str, reason: str) -> Finding:
    return finding(
        "merge-vocab",
        file=file,
        found=f"{name}, not compared: {reason}",
        expected="a local folder",
        severity="info",
        repair="Give the parent's folder with --parent, if the merge is to be held against it.",
    )
