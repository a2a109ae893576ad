"""What a release has sent so far, on this machine: it resumes where it was cut, and knows the parts that it split.

The Hub is asked what it holds, and believed; the journal saves reading gigabytes once more to learn it. It lies beside
the export in `OUT.publishing`, holds hashes and names and nothing else, and goes when the release is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from hermetiq import typed_json
from hermetiq.errors import HermetiqError
from hermetiq.formats.output import write_files

from .plan import Plan

FILE: Final = "journal.json"
ENDING: Final = ".publishing"
VERSION: Final = 1
_REMEDY: Final = "delete the folder; what has been sent stays on the Hub, and is not sent again"


@dataclass(frozen=True)
class State:
    """All that the journal says."""

    plan: str
    """Digest of the plan that it belongs to."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 by name of the split files that lie in the folder."""
    sent: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """SHA-256 of large files that a repo's storage holds, by repo."""
    committed: Mapping[str, str] = field(default_factory=dict)
    """Commit of every branch that is complete, by `REPO@BRANCH`."""
    version: int = VERSION


class Journal:
    """The journal of one release; every entry is on disk when its method returns."""

    def __init__(self, folder: Path, state: State) -> None:
        self.folder, self.state = folder, state

    @classmethod
    def open(cls, export: Path, plan: Plan) -> Journal:
        """Go on with the journal of this very plan, or begin one; that of another plan is dropped.

        Raises:
            HermetiqError: a link or a file in the folder's place, or the journal was damaged.
        """
        folder = place(export)
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise HermetiqError("the work folder's place is taken by a link or a file", where=str(folder))
        if folder.exists() and any(folder.iterdir()) and not (folder / FILE).exists():
            raise HermetiqError("not a folder of hermetiq", where=str(folder), remedy="move it away")
        digest = hashlib.sha256(json.dumps(plan.to_json(), sort_keys=True).encode()).hexdigest()
        state = State(digest)
        if (folder / FILE).exists():
            earlier = typed_json.read(folder / FILE, State, version=VERSION, remedy=_REMEDY)
            if earlier.plan == digest:
                return cls(folder, earlier)
            _drop_parts(folder, earlier)
        folder.mkdir(parents=True, exist_ok=True)
        journal = cls(folder, state)
        journal._write(state)
        return journal

    def split(self, parts: Mapping[str, str]) -> None:
        """Parts were written into the folder, with these SHA-256."""
        self._write(replace(self.state, parts={**self.state.parts, **parts}))

    def sent(self, repo: str, sha256: str) -> None:
        """A large file lies in the storage of a repo."""
        known = self.state.sent.get(repo, ())
        self._write(replace(self.state, sent={**self.state.sent, repo: (*known, sha256)}))

    def committed(self, place: str, commit: str) -> None:
        """A branch is complete."""
        self._write(replace(self.state, committed={**self.state.committed, place: commit}))

    def holds(self, repo: str, sha256: str) -> bool:
        return sha256 in self.state.sent.get(repo, ())

    def remove(self) -> None:
        """The release is complete."""
        shutil.rmtree(self.folder)

    def _write(self, state: State) -> None:
        write_files({self.folder / FILE: typed_json.encode(state)})
        self.state = state


def place(export: Path) -> Path:
    """The journal's folder, beside that of the export."""
    whole = export.resolve()
    return whole.with_name(whole.name + ENDING)


def _drop_parts(folder: Path, state: State) -> None:
    """Split files of another plan are of no use, and large."""
    for name in state.parts:
        path = folder / Path(name).name
        if path.is_file() and not path.is_symlink():
            path.unlink()
