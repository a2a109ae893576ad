"""Task files of somebody's own: data, until they are allowed to be code.

The harness runs what a task file names: Python functions (`!function`), and metrics that it does not know itself, which
it looks up and executes as scripts. So every file is looked at before the harness reads the first.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from hermetiq.errors import HermetiqError

REMOTE: Final = "trust_remote_code"
_REMEDY: Final = "--allow-code runs it, with all your rights"


def require_data(folder: Path, metrics: Container[str]) -> None:
    """Refuse a folder of task files in which one would run code.

    Args:
        metrics: those that the harness computes itself.

    Raises:
        HermetiqError: no such folder; a file that is no YAML, names a function or a metric of no known name, or
            includes a file that lies outside the folder.
    """
    if not folder.is_dir():
        raise HermetiqError("no such folder", where=str(folder), remedy="give the folder of your task files")
    pending, seen = [path.resolve() for path in sorted(folder.glob("**/*.yaml"))], set[Path]()
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        document = _document(path)
        for name in _metrics(document):
            if name not in metrics:
                raise HermetiqError(f"the metric {name!r} is a script", where=str(path), remedy=_REMEDY)
        pending += _included(document, path, folder)


def asks_for_remote_code(config: Any) -> bool:
    """Whether a task's configuration wants code of its data set's repo to be run."""
    return any(mapping.get(REMOTE) for mapping in _mappings(config))


def mentioned(config: Any) -> set[str]:
    """Names of tasks and groups in a configuration: its own, and those of the members of a group."""
    stated = [mapping.get(key) for mapping in _mappings(config) for key in ("task", "group")]
    return {name for each in stated for name in (each if isinstance(each, list) else [each]) if isinstance(name, str)}


class _DataLoader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without anything that runs."""


def _refuse_function(loader: _DataLoader, node: yaml.Node) -> None:
    raise HermetiqError(f"runs Python: !function {node.value}", where=f"line {node.start_mark.line + 1}")


_DataLoader.add_constructor("!function", _refuse_function)


def _document(path: Path) -> Any:
    try:
        return yaml.load(path.read_bytes(), Loader=_DataLoader)
    except HermetiqError as error:
        raise HermetiqError(error.what, where=f"{path}: {error.where}", remedy=_REMEDY) from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        line = " ".join(str(error).split())
        raise HermetiqError(f"no task file: {line}", where=str(path), remedy="mend it, or take it away") from None


def _metrics(document: Any) -> Iterator[Any]:
    """What stands for a metric anywhere in a task file; None for one that is said to be a script."""
    for mapping in _mappings(document):
        listed = mapping.get("metric_list")
        for entry in listed if isinstance(listed, list) else []:
            if isinstance(entry, dict):
                yield None if entry.get("hf_evaluate") else entry.get("metric")


def _included(document: Any, path: Path, folder: Path) -> list[Path]:
    """The files that a task file is completed with."""
    stated = document.get("include", []) if isinstance(document, dict) else []
    found = [(path.parent / str(each)).resolve() for each in (stated if isinstance(stated, list) else [stated])]
    for each in found:
        if folder.resolve() not in each.parents:
            raise HermetiqError(f"includes {each}, outside {folder}", where=str(path), remedy=_REMEDY)
    return found


def _mappings(value: Any) -> Iterator[Mapping[Any, Any]]:
    """Every mapping in a document, however deep; YAML may hold one in several places, or in itself."""
    pending, seen = [value], set[int]()
    while pending:
        each = pending.pop()
        if id(each) in seen or not isinstance(each, dict | list):
            continue
        seen.add(id(each))
        if isinstance(each, dict):
            yield each
        pending += each.values() if isinstance(each, dict) else each
