"""YAML that a person wrote, with the line of every value, so that an error can point at it.

Only what one reading has is taken: a key stands once in its mapping and is text, and there are no anchors, so a file
of a few lines cannot stand for a document of gigabytes. Values are text, numbers, booleans and null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from hermetiq.checkpoint.documents import obstacle
from hermetiq.errors import HermetiqError

_MOST_BYTES: Final = 1 << 16
"""A hundred times what a recipe takes."""
_DEEPEST: Final = 16
"""Levels of nesting."""
_REMEDY: Final = "see docs/python.md for a recipe"
_TEXT: Final = "tag:yaml.org,2002:str"
_PLAIN: Final = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null"))


@dataclass(frozen=True)
class LinedYaml:
    """The one document of a file."""

    path: Path
    data: Any
    """Mappings with text as keys, lists and scalars."""
    _root: yaml.Node

    def place(self, location: Sequence[int | str]) -> str:
        """`FILE:LINE: FIELD` of a value by its keys and indices; where it is missing, of the mapping it would be in."""
        node, line, known = self._root, self._root.start_mark.line, list[str]()
        for step in location:
            found = _child(node, step)
            if found is None:
                # Of a key that is missing the name is worth saying; a step that no file has is none of the reader's.
                known += [str(step)] if isinstance(node, yaml.MappingNode) else []
                break
            (line, node), known = found, [*known, str(step)]
        return ": ".join(filter(None, (f"{self.path}:{line + 1}", ".".join(known))))

    @classmethod
    def read(cls, path: Path) -> LinedYaml:
        """Read a file.

        Raises:
            HermetiqError: no such file, not UTF-8, too large, not YAML, an anchor, or a key twice; with the line.
        """
        text = _text(path)
        try:
            _require_simple(text)
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            if root is None:
                raise HermetiqError("nothing in this file", where=str(path), remedy=_REMEDY)
            return cls(path, _built(root), root)
        except yaml.YAMLError as error:
            raise _unread(error, path) from None


def _text(path: Path) -> str:
    if found := obstacle(path):
        raise HermetiqError(found, where=str(path), remedy=_REMEDY)
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise HermetiqError(f"more than {_MOST_BYTES} bytes", where=str(path), remedy=_REMEDY)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise HermetiqError("a byte that is not UTF-8", where=f"{path}:{line}", remedy=_REMEDY) from None


def _require_simple(text: str) -> None:
    """No anchor, and no nesting that reading would drown in. Nothing is built yet."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if getattr(event, "anchor", None) is not None:
            raise _refused("an anchor; write the value out", event.start_mark)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise _refused(f"nested deeper than {_DEEPEST} levels", event.start_mark)


def _built(node: yaml.Node) -> Any:
    """The value of a node; the keys of a mapping are text, each once."""
    if node.tag not in _PLAIN:
        kind = node.tag.rpartition(":")[2]
        raise _refused(f"a value of the kind {kind!r}; text that looks like one needs quotes", node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        return [_built(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        built: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag != _TEXT:
                raise _refused("a key that is no text", key.start_mark)
            if key.value in built:
                raise _refused(f"the key {key.value!r} a second time", key.start_mark)
            built[key.value] = _built(value)
        return built
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    # PyYAML lets the failure of its own code through (`!!int ''`, a number of too many digits).
    except (ValueError, LookupError, AttributeError, TypeError):
        raise _refused(f"{node.value[:20]!r} is no {node.tag.rpartition(':')[2]}", node.start_mark) from None


def _child(node: yaml.Node, step: int | str) -> tuple[int, yaml.Node] | None:
    """The line that a value of `node` begins in, with its key if it has one, and the value."""
    if isinstance(node, yaml.MappingNode):
        return next(((key.start_mark.line, value) for key, value in node.value if key.value == step), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step].start_mark.line, node.value[step]
    return None


def _refused(what: str, mark: yaml.Mark) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=mark)


def _unread(error: yaml.YAMLError, path: Path) -> HermetiqError:
    mark = getattr(error, "problem_mark", None)
    told = [getattr(error, name, None) for name in ("context", "problem", "reason")]
    return HermetiqError(
        ", ".join(filter(None, told)), where=f"{path}:{mark.line + 1}" if mark else str(path), remedy=_REMEDY
    )
