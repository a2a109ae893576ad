"""The calibration walk on models of 8, 16 and 32 layers: `python -m benchmarks.walk`.

Memory must not grow with depth: it is one block with its statistics, and the hidden states. The models have the same
layers, so the deeper ones are the shallow one with more of it.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.measure import Cost, forget, run

DEPTHS: Final = (8, 16, 32)
GROWTH: Final = 1.05
"""Most that the peak at the largest depth may be of the peak at the smallest."""
VOCABULARY: Final = 32_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--row-tokens", type=int, default=512)
    parser.add_argument("--full", action="store_true", help="as wide as Mistral-7B, 15 GB on disk")
    parser.add_argument("--walk", type=Path, metavar="MODEL", help="walk through this model, and print nothing")
    options = parser.parse_args()
    if options.walk:
        walk(options.walk, options.rows, options.row_tokens)
        return
    peaks = []
    cache = Path(__file__).resolve().parents[1] / ".cache"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        place, log = Path(folder) / "models", Path(folder) / "log"
        width = [] if options.full else ["--small"]
        run([sys.executable, "-m", "benchmarks.mistral", place, "--layers", *map(str, DEPTHS), *width], log=log)
        for depth in DEPTHS:
            cost = walk_apart(place / str(depth), options.rows, options.row_tokens, log)
            peaks.append(cost.peak)
            print(f"{depth:3} layers          {cost}", flush=True)
    growth = peaks[-1] / peaks[0]
    print(f"peak: {growth:.3f}, goal {GROWTH}: {'met' if growth <= GROWTH else 'MISSED'}")


def walk_apart(model: Path, rows: int, row_tokens: int, log: Path) -> Cost:
    """A walk in a process of its own, from cold files."""
    forget(model)
    sizes = ["--rows", str(rows), "--row-tokens", str(row_tokens)]
    return run([sys.executable, "-m", "benchmarks.walk", "--walk", model, *sizes], log=log)


def walk(model: Path, rows: int, row_tokens: int) -> None:
    """Show every block with its statistics to a visitor that keeps nothing."""
    # Imported here: the process that measures has to stay small (see `measure.run`).
    from hermetiq.calibration.observe import observe
    from hermetiq.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(model)
    drawn = random.Random(0)
    ids = [[drawn.randrange(VOCABULARY) for _ in range(row_tokens)] for _ in range(rows)]
    observe(checkpoint.config, checkpoint.load, ids, lambda block: None)


if __name__ == "__main__":
    main()
