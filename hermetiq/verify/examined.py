"""What every artifact is asked before a weight is walked, whatever its format: are its bytes and its contract right?"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hermetiq.chat.contract import ChatContract, derive
from hermetiq.checkpoint import open_checkpoint
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.errors import HermetiqError
from hermetiq.manifest import Artifact, Manifest, combined_sha256, sha256_of
from hermetiq.progress import Ticker
from hermetiq.quantize.spec import Spec, parse
from hermetiq.verification import Check

from . import judge
from .foreign import Observed
from .judge import Findings
from .reference import Reference
from .smoke import Answer


@dataclass(frozen=True)
class Stored:
    """An artifact on the disk."""

    artifact: Artifact
    path: Path
    """The file or the folder."""
    files: Mapping[str, Path]
    """Every file of it, by its name in the manifest."""

    @property
    def spec(self) -> Spec:
        return parse(self.artifact.spec)


@dataclass(frozen=True)
class Examined:
    """One artifact after everything that needs no walk."""

    stored: Stored
    sha256: str
    """Of the bytes that were found."""
    checkpoint: Checkpoint | None
    """None where our own reader cannot open it."""
    findings: Findings
    answers: tuple[Answer, ...] | None = None
    """To the smoke prompts; None where nothing could answer."""
    logprobs: tuple[tuple[int, npt.NDArray[np.float64]], ...] = ()
    """What a runtime makes of some turn ends: index into `Reference.ends`, log-probabilities (vocabulary,)."""
    foreign: Observed | None = None
    """What the runtime that the user named says; None where none was asked."""

    @property
    def all_answers(self) -> tuple[Answer, ...]:
        """The artifact's own, then those of the named runtime."""
        return (self.answers or ()) + (self.foreign.answers if self.foreign else ())


Examine = Callable[[Stored, Reference, Ticker], Examined]


def on_disk(folder: Path, manifest: Manifest, artifact: Artifact) -> Stored:
    """The artifact where the export in `folder` has it.

    Raises:
        HermetiqError: a file of it is missing, or lies outside `folder`.
    """
    files = manifest.paths_of(artifact, folder)
    for path in files.values():
        if not path.is_file():
            raise HermetiqError(
                "the manifest names this file, and it is not there", where=str(path), remedy="export again"
            )
    return Stored(artifact, manifest.path_of(artifact, folder), files)


def bytes_found(stored: Stored) -> tuple[str, Findings]:
    """The artifact's digest and whether it is the one that was exported."""
    artifact = stored.artifact
    digests = {name: sha256_of(path) for name, path in stored.files.items()}
    changed = sorted(name for name in digests if digests[name] != artifact.files[name])
    combined = combined_sha256(digests)
    reason = f"the bytes are not those that were exported: {', '.join(changed)}" if changed else ""
    return combined, Findings((Check("bytes", not changed, combined, artifact.sha256, reason),))


def opened(stored: Stored, source: ChatContract) -> tuple[Checkpoint | None, ChatContract | None, Findings]:
    """The artifact as our own reader has it, its contract, and that contract against the source's."""
    checkpoint = None
    try:
        checkpoint = open_checkpoint(stored.path)
        contract = derive(checkpoint, base_model=not source.is_chat)
    except HermetiqError as error:
        check = Check("contract", False, "unreadable", "readable", told(error, stored.path))
        return checkpoint, None, Findings((check,))
    return checkpoint, contract, Findings((judge.contract_check(source, contract),))


def told(error: HermetiqError, path: Path) -> str:
    """What an error says about what lies at `path`; the manifest keeps it, so this machine's folders stay out of it."""
    text = f"{error.where}: {error.what}" if error.where else error.what
    for folder in (path.parent, path.resolve().parent):
        text = text.replace(f"{folder}{os.sep}", "")
    return text
