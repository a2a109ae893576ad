"""One command measured from outside: wall time, processor time, peak resident memory, bytes written."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What a child process took; `+` is one after the other."""

    seconds: float
    busy: float
    """Processor seconds; over `seconds` times cores, how much of the machine it used."""
    peak: int
    """Largest resident set in bytes, mapped files included."""
    written: int
    """Bytes it wrote to files."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.busy + other.busy,
            max(self.peak, other.peak),
            self.written + other.written,
        )

    def __str__(self) -> str:
        times = f"{self.seconds:8.1f} s {self.busy:8.1f} s busy"
        return f"{times} {self.peak / 2**30:6.2f} GiB peak {self.written / 1e9:7.2f} GB written"


def run(command: Sequence[str | Path], *, log: Path) -> Cost:
    """Run a command to its end, its output appended to `log`.

    Keep the calling process small: a child begins with the memory of its parent, and the kernel remembers that.

    Raises:
        SystemExit: the command failed; the message shows the end of its output.
    """
    with log.open("ab") as output:
        begin = time.perf_counter()
        child = subprocess.Popen([str(part) for part in command], stdout=output, stderr=output)
        # The child stays a zombie until wait4, so that its counters can still be read.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        seconds = time.perf_counter() - begin
        written = _written(child.pid)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{command[0]} failed ({child.returncode}):\n{log.read_text(errors='replace')[-2000:]}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, written)


def forget(folder: Path) -> None:
    """Put the folder's files on disk and out of the page cache, so that every contender starts cold."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _written(pid: int) -> int:
    counters = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(counters["wchar"])
