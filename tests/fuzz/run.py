"""One case from its number to its outcome, through the whole of `inspect` and what the command prints of it."""

from __future__ import annotations

import io
import json
from typing import Literal

from rich.console import Console

from hermetiq.chat.inspect import Inspection, inspect
from hermetiq.cli import show_findings
from hermetiq.errors import HermetiqError, Refusal

from .corpus import SECRET, Case, Corpus
from .guard import guarded

Outcome = Literal["sound", "findings", "error"]


def outcome(corpus: Corpus, number: int) -> Outcome:
    """What `inspect` made of the case; raises whatever else it raised, and `Forbidden` for what no case may do."""
    case = corpus.case(number)
    sources = (case.path if case.path.is_dir() else case.path.parent, case.adapter, *case.parents)
    with guarded(*(folder for folder in sources if folder is not None)):
        word, said = _said(case)
    assert SECRET not in said, "text of a file outside the folder"
    return word


def _said(case: Case) -> tuple[Outcome, str]:
    try:
        found = inspect(
            str(case.path),
            adapter=None if case.adapter is None else str(case.adapter),
            parents=[str(parent) for parent in case.parents],
        )
    except HermetiqError as error:
        return "error", str(error) + _shown(error.findings if isinstance(error, Refusal) else ())
    assert isinstance(found, Inspection)
    document = json.dumps(found.to_json(), ensure_ascii=False)
    document.encode()
    return "findings" if found.findings else "sound", document + _shown(found.findings)


def _shown(findings: tuple[object, ...]) -> str:
    text = io.StringIO()
    show_findings(Console(file=text, width=240), findings)  # type: ignore[arg-type]
    return text.getvalue()
