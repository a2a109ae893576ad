"""`docs/rules.md`, made of the rules and the cases, so that the page cannot say what the program does not.

`make rules` writes it; a test holds the stored page against this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hermetiq.cases import CASES
from hermetiq.rules import RULES

_HEAD = """\
# Rules

`hermetiq inspect PATH` holds a checkpoint or an artifact against these rules; `hermetiq rule NAME` explains one: what,
why, and the repair. An `error` stops an export unless `--ignore NAME` says otherwise, and makes `inspect` exit with 1;
a finding may be milder than its rule where the place is harmless. `inspect --parent FOLDER`, repeated, names what a
merge was made of, and `inspect --forward` runs the model.

The checks are in `hermetiq/chat/`, `hermetiq/checkpoint/` and `hermetiq/verify/`; `tests/chat/test_mutations.py` breaks
a model once for each. This page is made by `make rules` from `hermetiq/rules.py` and `hermetiq/cases.py`.
"""
_CASES = """\
## Cases

What people run into, by the numbers that the source and the tests use, and what answers it: rules (in `code`, found
before any work), how an export is made, `hermetiq repair`, or what `hermetiq verify` proves. `hermetiq rule U01` shows
one. `tests/test_cases.py` names the tests behind each answer.
"""


def rules_page() -> str:
    """The page as Markdown; the same tables always give the same text."""
    rules = [(f"`{rule.name}`", rule.severity, " ".join(rule.cases), rule.what, rule.repair) for rule in RULES.values()]
    cases = [(case.number, case.sees, case.because, case.answered) for case in CASES.values()]
    return "\n".join(
        (
            _HEAD,
            *_table(("rule", "severity", "cases", "what", "repair"), rules),
            "",
            _CASES,
            *_table(("case", "what people see", "because", "answered by"), cases),
            "",
        )
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_row(head), "|" + "---|" * len(head), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    """One line of a table; a bar inside a cell would end it."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
