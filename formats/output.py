"""A file on its way: written beside its place, put there when it is complete, gone if it never is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from hermetiq.errors import HermetiqError


class Output:
    """Context manager of one file; it carries the suffix `.partial` until `publish`.

    Several files appear together where all are finished before the first is published; an error that leaves the block
    takes published ones away again.

    Raises:
        HermetiqError: every method, where the disk is full or the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.written = path, 0
        self.digest = hashlib.sha256()
        """Of the file's bytes."""
        self.at = path.with_name(path.name + ".partial")
        """Where the file lies now."""
        self._file: BinaryIO

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.at.open("wb")
        except OSError as error:
            raise self._failed(error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # On a full disk closing fails once more over what is still buffered; the file must go all the same.
        with suppress(OSError):
            self._file.close()
        if error is not None or self.at != self.path:
            self.at.unlink(missing_ok=True)

    def append(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failed(error) from error
        self.digest.update(data)
        self.written += len(data) if isinstance(data, bytes) else data.nbytes

    def finish(self, planned: int) -> None:
        """Put the whole file on disk and hold its size, in bytes, against the plan.

        Raises:
            HermetiqError: it has another size.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise self._failed(error) from error
        if size != planned:
            raise HermetiqError(f"wrote {size} bytes, planned {planned}", where=str(self.path))

    def revise(self, offset: int, data: bytes) -> None:
        """Put other bytes into the finished file, as many from `offset` on as `data` has."""
        try:
            self._file.seek(offset)
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
            with self.at.open("rb") as whole:
                self.digest = hashlib.file_digest(whole, "sha256")
        except OSError as error:
            raise self._failed(error) from error

    def publish(self) -> None:
        """Give the finished file its name."""
        try:
            self._file.close()
            self.at = self.at.replace(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> HermetiqError:
        return HermetiqError(
            f"cannot write: {error.strerror}", where=str(self.path), remedy="free disk space, or choose another folder"
        )


def write_files(contents: Mapping[Path, bytes]) -> dict[Path, str]:
    """Write small files, all whole or none; returns the SHA-256 of each, as hex.

    Raises:
        HermetiqError: the disk is full or the folder cannot be written.
    """
    with ExitStack() as stack:
        outputs = []
        for path, content in contents.items():
            outputs.append(stack.enter_context(Output(path)))
            outputs[-1].append(content)
            outputs[-1].finish(len(content))
        for output in outputs:
            output.publish()
        return {output.path: output.digest.hexdigest() for output in outputs}
