"""The chat template that a user gives a model which has none, or not its own.

A card may hold the only copy of a template, as prose; the parent of a fine-tune holds it as a file. Which text is right
is the user's to say: nothing is taken from a card, and no parent is opened that was not named.
"""

from __future__ import annotations

from pathlib import Path

from hermetiq.chat.probe import chosen_template
from hermetiq.checkpoint.documents import obstacle, read_documents, read_templates
from hermetiq.errors import HermetiqError

_OPTION = "--chat-template"
_MOST_BYTES = 1 << 20
"""Fifty times the longest template in use."""


def template_at(path: Path) -> str:
    """The template in a text file, or the one that a model folder would be used with.

    Raises:
        HermetiqError: nothing there, no template in the folder, or a file that is no text.
    """
    text = _of_folder(path) if path.is_dir() else _of_file(path)
    if not text.strip():
        raise HermetiqError("an empty template", where=f"{_OPTION} {path}", remedy="give the template of the training")
    return text


def _of_folder(folder: Path) -> str:
    documents, _ = read_documents(folder)
    templates, findings = read_templates(folder, documents)
    if chosen := chosen_template(templates):
        return chosen[1]
    what = "; ".join(f"{item.file}: {item.found}" for item in findings) or "no chat template in this folder"
    raise HermetiqError(what, where=f"{_OPTION} {folder}", remedy="give the folder or file that has it")


def _of_file(path: Path) -> str:
    where, remedy = f"{_OPTION} {path}", "give a text file with the template, or a model folder"
    if found := obstacle(path):
        raise HermetiqError(found, where=where, remedy=remedy)
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise HermetiqError(f"{size} bytes, where a template has {_MOST_BYTES} at most", where=where, remedy=remedy)
    try:
        # Text mode turns CRLF into LF, as transformers does for templates.
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        what = f"a byte that is not UTF-8 at position {error.start}"
        raise HermetiqError(what, where=where, remedy=remedy) from error
