"""`pytest --hermetiq-artifact OUT`: one test for each check of an export, so that a lost EOS is a test that fails.

With `--hermetiq-source` the artifacts are verified now. Without it the last verification is believed, where the
manifest has one and no byte has changed since; where it cannot be, that is a test that fails.

The plugin is loaded by every pytest run of the environment, so nothing of hermetiq is imported before it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from hermetiq.manifest import Artifact, Manifest
    from hermetiq.verification import Check


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("hermetiq", "quantized artifacts")
    group.addoption(
        "--hermetiq-artifact", action="append", default=[], metavar="OUT", help="Folder of an export; repeatable."
    )
    group.addoption("--hermetiq-source", metavar="PATH", help="Verify it now, against this checkpoint.")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add a test for each check of each artifact that was asked for."""
    for folder in config.getoption("--hermetiq-artifact"):
        items += Export.from_parent(session, name=folder, folder=Path(folder)).collect()


class Unproven(Exception):
    """A check that failed, or that was never made."""


@dataclass(frozen=True)
class Result:
    """One line of a report: a check by name, and the reason why it failed, or none."""

    name: str
    fault: str | None


class Export(pytest.Collector):
    """The folder of an export."""

    def __init__(self, folder: Path, **more: Any) -> None:
        super().__init__(**more)
        self._folder = folder

    def collect(self) -> list[pytest.Item]:
        """A test for each check.

        Raises:
            pytest.UsageError: there is no export in the folder, or the source is not the one that it was made of.
        """
        from hermetiq.errors import HermetiqError

        source = self.config.getoption("--hermetiq-source")
        try:
            results = verified(self._folder, source) if source else believed(self._folder)
            return [Proof.from_parent(self, name=result.name, fault=result.fault) for result in results]
        except HermetiqError as error:
            where = f"{error.where}: " if error.where else ""
            raise pytest.UsageError(f"{where}{error.what}; {error.remedy}") from None


class Proof(pytest.Item):
    """One check."""

    def __init__(self, fault: str | None, **more: Any) -> None:
        super().__init__(**more)
        self._fault = fault

    def runtest(self) -> None:
        """Fail as the check did."""
        if self._fault is not None:
            raise Unproven(self._fault)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        """The reason alone: where in this file it was raised helps nobody."""
        return str(excinfo.value)

    def reportinfo(self) -> tuple[Path, None, str]:
        """What pytest calls it."""
        return self.path, None, self.name


def verified(folder: Path, source: str) -> list[Result]:
    """Every check of every artifact, made now.

    Raises:
        HermetiqError: there is no export in `folder`, or it was not made of `source`.
    """
    from hermetiq.verify import open_source, verify

    return [
        _result(report.file, check) for report in verify(folder, open_source(folder, source)) for check in report.checks
    ]


def believed(folder: Path) -> list[Result]:
    """Every check that the last verification made of artifacts which are still the same bytes.

    Raises:
        HermetiqError: there is no export in `folder`.
    """
    from hermetiq.manifest import Manifest

    manifest = Manifest.read(folder)
    return [result for artifact in manifest.artifacts for result in _kept(manifest, artifact, folder)]


def _kept(manifest: Manifest, artifact: Artifact, folder: Path) -> Iterator[Result]:
    from hermetiq.manifest import sha256_of

    found = manifest.verified(artifact)
    changed = [
        name
        for name, path in manifest.paths_of(artifact, folder).items()
        if not path.is_file() or sha256_of(path) != artifact.files[name]
    ]
    yield Result(f"{artifact.file}::bytes", f"{changed[0]} is not what was exported" if changed else None)
    if found is None:
        yield Result(f"{artifact.file}::verified", "never verified: `hermetiq verify`, or give --hermetiq-source")
        return
    yield from (_result(artifact.file, check) for check in found.checks)


def _result(file: str, check: Check) -> Result:
    return Result(f"{file}::{check.name}", None if check.passed else check.reason or f"{check.value}")
