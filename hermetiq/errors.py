"""Errors that say what is wrong, where, and what to do about it.

Every refusal of hermetiq is one of these. `cli.py` alone prints them and turns them into an exit
status; everywhere else they are raised. A traceback that a user sees is a bug.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """What one rule says about one place in a checkpoint or an artifact."""

    rule: str
    severity: Severity
    file: str
    field: str
    found: str
    expected: str
    why: str
    repair: str

    def __str__(self) -> str:
        place = f"{self.file}: {self.field}" if self.field else self.file
        return f"{self.rule}: {place}: found {self.found}, expected {self.expected}"


class HermetiqError(Exception):
    """Unusable input or usage: `what` happened, `where`, and the `remedy`."""

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(": ".join(part for part in (where, what) if part) + (f" ({remedy})" if remedy else ""))


class Refusal(HermetiqError):
    """The input breaks one or more rules, so the work does not begin."""

    def __init__(self, *findings: Finding) -> None:
        self.findings = findings
        first = findings[0]
        place = f"{first.file}: {first.field}" if first.field else first.file
        more = f" (and {len(findings) - 1} more findings)" if len(findings) > 1 else ""
        super().__init__(
            f"{first.rule}: found {first.found}, expected {first.expected}{more}", where=place, remedy=first.repair
        )


class CheckFailed(HermetiqError):
    """The input was usable, and a check on it failed."""

    exit_code = 1
