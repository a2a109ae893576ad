"""Run many cases, and tell every one that fails by its number: `python -m tests.fuzz --cases 20000`.

Each process has a part of the numbers. One that dies of a case, or hangs in a library's own code, is started again
behind that case.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Final

WALL_SECONDS: Final = 120
"""Of one case; what takes so long neither computes nor ends."""
MEMORY: Final = 2 << 30
"""Bytes of addresses beyond what the process has before its first case."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--worker", action="store_true", help="run here, and print a line for each case")
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.cases)
    if options.worker:
        work(numbers)
        return
    begin = time.perf_counter()
    bounds = [numbers.start + len(numbers) * job // options.jobs for job in range(options.jobs + 1)]
    parts = [_Part(range(*pair)) for pair in pairwise(bounds)]
    outcomes = Counter[str]()
    failed = list[str]()
    for part in parts:
        for number, word, told in part.finish():
            outcomes[word] += 1
            if told:
                failed.append(f"case {number}: {word}\n{told}")
                print(failed[-1], flush=True)  # noqa: T201
    counted = ", ".join(f"{count} {word}" for word, count in outcomes.most_common())
    print(f"{sum(outcomes.values())} cases in {time.perf_counter() - begin:.0f} s: {counted}; {len(failed)} failed")  # noqa: T201
    sys.exit(1 if failed or sum(outcomes.values()) != options.cases else 0)


class _Part:
    """Some numbers, worked through by one process after another."""

    def __init__(self, numbers: range) -> None:
        self._numbers = numbers
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the part)
        self._process = self._start(numbers)

    def finish(self) -> list[tuple[int, str, str]]:
        """Number, outcome, and for a failure what was told of it."""
        lines = list[tuple[int, str, str]]()
        while True:
            status = self._process.wait()
            self._log.seek(0)
            text = self._log.read()
            lines = [_parsed(line) for line in text.splitlines() if line.startswith("case ")]
            reached = self._numbers.start + len(lines)
            if reached >= self._numbers.stop:
                return lines
            end = text[text.rfind("\ncase ") + 1 :].replace("\n", "\\n")
            self._log.write(f"\ncase {reached} died({status}) {end}\n")
            self._log.flush()
            self._process = self._start(range(reached + 1, self._numbers.stop))

    def _start(self, numbers: range) -> subprocess.Popen[bytes]:
        arguments = ["--worker", "--first", str(numbers.start), "--cases", str(len(numbers))]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz", *arguments], stdout=self._log, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip


def _parsed(line: str) -> tuple[int, str, str]:
    _, number, word, *told = line.split(" ", 3)
    return int(number), word, "".join(told).replace("\\n", "\n")


def work(numbers: range) -> None:
    """Run the cases one after another; print number and outcome of each, and of a failure where it failed."""
    # Imported here: the process that waits needs none of it.
    from hermetiq.chat import template

    from .corpus import Corpus
    from .run import outcome

    warnings.simplefilter("error")
    # Most cases leave the template alone, and its process is what takes the time.
    template._run = cache(template._run)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus(Path(folder))
        resource.setrlimit(resource.RLIMIT_AS, (_addresses() + MEMORY, resource.RLIM_INFINITY))
        for number in numbers:
            faulthandler.dump_traceback_later(WALL_SECONDS, exit=True)
            try:
                line = outcome(corpus, number)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                told = "".join(traceback.format_exception(error)[-12:]).replace("\n", "\\n")
                line = f"{type(error).__name__} {told}"
            print(f"case {number} {line}", flush=True)  # noqa: T201
        faulthandler.cancel_dump_traceback_later()


def _addresses() -> int:
    """Bytes of address space in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
