"""Time and memory of each stage of the work, kept beside the manifest.

The manifest is the same whenever and wherever an export is repeated; seconds and memory are not, so they have a file of
their own, which is never published.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hermetiq import typed_json
from hermetiq.errors import HermetiqError
from hermetiq.formats.output import write_files
from hermetiq.manifest import STAGES

VERSION: Final = 1
_REMEDY: Final = "delete it; it is written anew"


@dataclass(frozen=True)
class Stage:
    """One stretch of a command's work."""

    name: str
    seconds: float
    peak: int
    """Largest resident memory of the process from its start to the end of the stage, in bytes."""


@dataclass(frozen=True)
class Stages:
    """The whole of `hermetiq-stages.json`."""

    commands: Mapping[str, tuple[Stage, ...]] = field(default_factory=dict)
    """What the last `export` and the last `verify` did, one stage after another."""
    version: int = VERSION

    @classmethod
    def read(cls, folder: Path) -> Stages:
        """What `folder` keeps; nothing where it keeps nothing.

        Raises:
            HermetiqError: it cannot be read, or is no such file.
        """
        path = folder / STAGES
        return typed_json.read(path, cls, version=VERSION, remedy=_REMEDY) if path.exists() else cls()


@dataclass(frozen=True)
class Stopwatch:
    """Takes the time of one command's stages, one after another."""

    taken: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What is done inside is one stage; one that fails is not kept."""
        begin = time.perf_counter()
        yield
        self.taken.append(Stage(name, round(time.perf_counter() - begin, 3), _peak()))

    def keep(self, folder: Path, command: str) -> None:
        """Write what was taken into `folder`, in the place of what the same command left there before.

        Args:
            command: `export` or `verify`.

        Raises:
            HermetiqError: the file cannot be written.
        """
        try:
            known = Stages.read(folder)
        except HermetiqError:
            known = Stages()
        commands = {**known.commands, command: tuple(self.taken)}
        write_files({folder / STAGES: typed_json.encode(Stages(commands))})


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes, except on macOS.
    return peak if sys.platform == "darwin" else peak * 1024
