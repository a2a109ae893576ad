"""Failed checks as workflow commands of GitHub Actions, which the run's page shows at the top.

The commands are lines of a log, so a name out of a checkpoint must not be able to begin one of its own: percent signs
and line ends are escaped, in properties colons and commas too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from hermetiq.verify.report import ArtifactReport

VARIABLE: Final = "GITHUB_ACTIONS"
"""`true` in the environment of every step there."""
_DATA: Final = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_PROPERTY: Final = {**_DATA, **str.maketrans({":": "%3A", ",": "%2C"})}


def workflow_commands(reports: Sequence[ArtifactReport], environment: Mapping[str, str]) -> Iterator[str]:
    """A line for each failed check, where `environment` is that of a workflow; none elsewhere."""
    if environment.get(VARIABLE) != "true":
        return
    for report in reports:
        for check in report.checks:
            if not check.passed:
                title = f"{report.file}: {check.name}".translate(_PROPERTY)
                yield f"::error title={title}::{check.reason.translate(_DATA)}"
