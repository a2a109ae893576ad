"""What this process may use of the machine it runs on."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from hermetiq.errors import HermetiqError


@dataclass(frozen=True)
class _Group:
    """Where one generation of Linux control groups tells a container's memory."""

    folder: Path
    limit: str
    used: str
    cached: str
    """A field of `memory.stat`."""


_GROUPS = (
    _Group(Path("/sys/fs/cgroup"), "memory.max", "memory.current", "file"),
    _Group(Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
)


def cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Bytes this process could still take: what the machine can free, or less where a container has a limit."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    for group in _GROUPS:
        limit, used = (_lines(group.folder / name) for name in (group.limit, group.used))
        if limit and used and limit[0].isdigit():
            # Files left in memory count as used, and make room when it is needed.
            fields = (line.split() for line in _lines(group.folder / "memory.stat"))
            cached = sum(int(field[1]) for field in fields if field[0] == group.cached)
            available = min(available, int(limit[0]) - int(used[0]) + cached)
    return max(0, available)


def give_back_memory() -> None:
    """Hand freed memory back to the system, where the C library is glibc; others do it by themselves.

    glibc keeps what lies between blocks in use. Work that frees as much as it takes, round after round, grows with the
    number of rounds without this.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def accelerator(wanted: str) -> str:
    """The torch device to work on: `cpu`, `cuda`, or for `auto` a GPU where there is one.

    Raises:
        HermetiqError: `cuda` is asked for and there is none.
    """
    import torch  # Takes seconds, and most of the program has no use for it.

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise HermetiqError("no CUDA device that torch can use", remedy="--device cpu; `hermetiq doctor` says more")
    return "cuda" if there and wanted != "cpu" else "cpu"


def _lines(path: Path) -> list[str]:
    """Lines of a file of the kernel's; none where it does not have it."""
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
