"""`hermetiq-eval.json`: what the harness measured on the source and on each artifact of an export.

It lies beside the export and is read with suspicion. Each artifact is named with the SHA-256 of the bytes that were
evaluated, the source with its fingerprint: what was measured on other bytes is never shown as if it were of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from hermetiq import typed_json
from hermetiq.errors import HermetiqError
from hermetiq.formats.output import write_files
from hermetiq.manifest import EVALUATION, Manifest

VERSION: Final = 1
_REMEDY: Final = "delete it; `hermetiq eval` writes it anew"


@dataclass(frozen=True)
class Score:
    """One metric of one task, as a line of the harness's own table.

    Raises:
        HermetiqError: a number of shots or of documents, or a standard error, below zero.
    """

    task: str
    """Its name; of a group, where `documents` is None."""
    version: str
    filter: str
    """What was made of the answers first; `none` where nothing was."""
    shots: int | None
    """Solved examples in front of each question; None where the tasks of a group differ."""
    metric: str
    higher_is_better: bool | None
    """None where the task does not say."""
    value: float | None
    """None where it is no finite number."""
    stderr: float | None
    """None where the harness has none."""
    documents: int | None
    """Questions that were asked; None for a group, whose value is made of its tasks'."""

    def __post_init__(self) -> None:
        if any(number is not None and number < 0 for number in (self.shots, self.stderr, self.documents)):
            raise HermetiqError("a number of shots or documents, or a standard error, below 0")

    @property
    def line(self) -> tuple[str, str, str]:
        """What the same line of another model has in common with this one."""
        return self.task, self.filter, self.metric


@dataclass(frozen=True)
class Evaluated:
    """The scores of one artifact."""

    file: str
    """As `Artifact.file`."""
    sha256: str
    """Of the bytes that were evaluated, as `Artifact.sha256`."""
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Evaluation:
    """The whole of `hermetiq-eval.json`: one run of `hermetiq eval`.

    Raises:
        HermetiqError: a limit below one.
    """

    tasks: tuple[str, ...]
    """As they were asked for: tasks, groups and tags of the harness."""
    fingerprint: str
    """Of the source."""
    source: tuple[Score, ...]
    artifacts: tuple[Evaluated, ...] = ()
    limit: int | None = None
    """Questions of each task that were asked, the first of them; None for all."""
    notes: tuple[str, ...] = ()
    """What was left out and why."""
    harness: str = ""
    """Version of lm-evaluation-harness."""
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Versions of what the models were computed with."""
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise HermetiqError("a limit below 1")

    def to_json(self) -> dict[str, Any]:
        """Stable, for scripts."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        """Write it into the folder of the export.

        Raises:
            HermetiqError: the disk is full or the folder cannot be written.
        """
        write_files({folder / EVALUATION: typed_json.encode(self)})

    def of(self, manifest: Manifest) -> Evaluation | None:
        """What of it holds for the export as it is now; None where nothing does."""
        digests = {item.file: item.sha256 for item in manifest.artifacts}
        current = tuple(item for item in self.artifacts if digests.get(item.file) == item.sha256)
        if self.fingerprint != manifest.source.fingerprint or not current:
            return None
        return replace(self, artifacts=current)

    @classmethod
    def read(cls, folder: Path) -> Evaluation | None:
        """What `folder` keeps; None where it keeps nothing.

        Raises:
            HermetiqError: it cannot be read, or a value in it is not what it must be.
        """
        path = folder / EVALUATION
        return typed_json.read(path, cls, version=VERSION, remedy=_REMEDY) if path.exists() else None
