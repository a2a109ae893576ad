"""Documents to calibrate on, and the files that hold them: what comes in, before any template or tokenizer.

Rendering belongs to `chat`, which stands above this package. Data sets come in a few shapes with many small faults; a
line that cannot be read is an error that names it, because a corpus cut silently calibrates on something else (U35).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from hermetiq.errors import HermetiqError

Message = Mapping[str, str]
"""`role` (system, user, assistant) and `content`, as chat templates take them."""

BUILT_IN = "built-in"
"""What reports call the corpus that comes with the package."""
STREAMED_DOCUMENTS = 10_000
"""Of a data set on the Hub so many are read, from its beginning."""

_SHAPES = '{"messages": […]}, {"conversations": […]} or {"text": "…"}'
_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
}
"""Roles by the names that ShareGPT files give them."""


@dataclass(frozen=True)
class Chat:
    """A whole conversation; its last message is the assistant's."""

    messages: tuple[Message, ...]

    def prompts(self) -> tuple[tuple[Message, ...], ...]:
        """The messages before each assistant turn, to be rendered with the generation prompt."""
        starts = [index for index, message in enumerate(self.messages) if message["role"] == "assistant"]
        return tuple(self.messages[:start] for start in starts)


@dataclass(frozen=True)
class Text:
    """Prose or code outside any chat."""

    text: str


Document = Chat | Text


@cache
def built_in_documents() -> tuple[Document, ...]:
    """The corpus that comes with the package; what it holds and where it is from stands in this folder's README."""
    folder = files(__package__).joinpath("corpus")
    parts = sorted((part for part in folder.iterdir() if part.name.endswith(".jsonl")), key=lambda part: part.name)
    return tuple(document for part in parts for document in read_jsonl(part.read_text(encoding="utf-8"), part.name))


def read_documents(source: str | Path) -> list[Document]:
    """The documents of a `.jsonl` or `.txt` file, or of a data set on the Hub by its id (`owner/name`).

    A `.txt` is one text. Of a data set the first `STREAMED_DOCUMENTS` of the split `train` are read.

    Raises:
        HermetiqError: no such file, a line that is no document, or a data set that cannot be read.
    """
    path = Path(source)
    if path.suffix in _READERS:
        return list(_READERS[path.suffix](_text_of(path), str(path)))
    if path.exists():
        raise HermetiqError(
            f"cannot read a corpus of the kind {path.suffix or 'without a suffix'!r}",
            where=str(path),
            remedy=f"give a {' or '.join(_READERS)} file",
        )
    return list(_streamed(str(source)))


def read_jsonl(text: str, where: str) -> Iterator[Document]:
    """Documents of JSON lines: chats as `messages` or in ShareGPT's shape, texts as `text`. Empty lines are allowed.

    Args:
        where: the file's name, for messages.

    Raises:
        HermetiqError: a line that is none of these, named with its number.
    """
    # Not splitlines(): it also cuts at U+2028 and the like, which JSON allows inside strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _document(_parsed(line, f"{where}:{number}"), f"{where}:{number}")


def _read_text(text: str, where: str) -> Iterator[Document]:
    if not text.strip():
        raise HermetiqError("the file holds no text", where=where)
    yield Text(text)


_READERS: Mapping[str, Callable[[str, str], Iterable[Document]]] = {".jsonl": read_jsonl, ".txt": _read_text}


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise HermetiqError(f"cannot read the corpus: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise HermetiqError(
            f"byte {error.start} is not UTF-8", where=str(path), remedy="convert the file to UTF-8"
        ) from error


def _streamed(name: str) -> Iterator[Document]:
    """The first documents of a data set on the Hub, without downloading the rest."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise HermetiqError(
            "there is no such file, and reading data sets from the Hub needs the package `datasets`",
            where=name,
            remedy="pip install datasets",
        ) from error
    try:
        rows = list(islice(datasets.load_dataset(name, split="train", streaming=True), STREAMED_DOCUMENTS))
    # The package raises errors of many libraries: network, file formats, its own.
    except Exception as error:
        raise HermetiqError(f"cannot read the data set: {error}", where=name) from error
    for number, row in enumerate(rows, start=1):
        yield _document(row, f"{name}, row {number}")


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise HermetiqError(f"is not JSON: {error}", where=where) from error


def _document(row: Any, where: str) -> Document:
    """A chat or a text, by the first key that is known."""
    if isinstance(row, Mapping):
        if isinstance(row.get("messages"), list):
            return Chat(tuple(_message(turn, "role", "content", where) for turn in _turns(row["messages"], where)))
        if isinstance(row.get("conversations"), list):
            return Chat(tuple(_sharegpt(turn, where) for turn in _turns(row["conversations"], where)))
        if isinstance(row.get("text"), str):
            return Text(row["text"])
    raise HermetiqError("is neither a chat nor a text", where=where, remedy=f"expected {_SHAPES}")


def _turns(turns: list[Any], where: str) -> list[Any]:
    if not turns:
        raise HermetiqError("is a chat without messages", where=where)
    return turns


def _message(turn: Any, role: str, content: str, where: str) -> Message:
    if not isinstance(turn, Mapping) or not isinstance(turn.get(role), str) or not isinstance(turn.get(content), str):
        raise HermetiqError(f"holds a message without text as its {role!r} and {content!r}", where=where)
    return {"role": turn[role], "content": turn[content]}


def _sharegpt(turn: Any, where: str) -> Message:
    message = _message(turn, "from", "value", where)
    if message["role"] not in _SPEAKERS:
        raise HermetiqError(
            f"holds a message from {message['role']!r}", where=where, remedy=f"known: {', '.join(_SPEAKERS)}"
        )
    return {**message, "role": _SPEAKERS[message["role"]]}
