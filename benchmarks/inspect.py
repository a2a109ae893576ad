"""`inspect` of a model of Mistral-7B's shape against reading its files: `python -m benchmarks.inspect`.

Both take turns, from a cold page cache and from a warm one, as a busy machine slows whoever runs at the moment. The
files are read by `cat`, which looks at nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.measure import Cost, forget, run

RATIO: Final = 1.3
"""Most that `inspect` may take of what `cat` takes."""
SECONDS: Final = 2.0
"""Most that it may take without weights."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="inspect this folder; made, 15 GB, and removed again where left out")
    options = parser.parse_args()
    cache = Path(__file__).resolve().parents[1] / ".cache"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as place:
        log, model = Path(place) / "log", options.model
        if model is None:
            run([sys.executable, "-m", "benchmarks.mistral", Path(place) / "models"], log=log)
            model = Path(place) / "models" / "32"
        for cold in (True, False):
            ratio = median(compare(model, log, cold=cold) for _ in range(options.rounds))
            told("cold" if cold else "warm", f"{ratio:.2f} of cat", met=ratio <= RATIO, goal=f"{RATIO}")
        costs = [inspect(model, log, "--no-weights") for _ in range(options.rounds)]
        fastest = min(costs, key=lambda cost: cost.seconds)
        told("--no-weights", str(fastest), met=fastest.seconds <= SECONDS, goal=f"{SECONDS} s")


def compare(model: Path, log: Path, *, cold: bool) -> float:
    """Seconds of `inspect` over those of `cat`, one after the other."""
    if cold:
        forget(model)
    read = run(["sh", "-c", 'cat "$0"/*.safetensors > /dev/null', model], log=log)
    if cold:
        forget(model)
    scanned = inspect(model, log)
    print(f"{'cold' if cold else 'warm'}: cat {read}\n      inspect {scanned}", flush=True)
    return scanned.seconds / read.seconds


def inspect(model: Path, log: Path, *options: str) -> Cost:
    return run([sys.executable, "-m", "hermetiq", "inspect", model, *options], log=log)


def told(what: str, found: str, *, met: bool, goal: str) -> None:
    print(f"{what}: {found}, goal {goal}: {'met' if met else 'MISSED'}", flush=True)


if __name__ == "__main__":
    main()
