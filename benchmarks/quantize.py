"""GPTQ, AWQ and K-quants against the packages people use: `python -m benchmarks.quantize [--keep DIR]`.

Everybody quantizes the same model to 4 bits in groups of 64, after reading the same rows of token ids, and runs as a
command from start to end. What came out is read by one reader. Wall times are worth something on an idle machine only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import Cost, forget, run
from hermetiq.machine import cores
from hermetiq.runtimes.environments import ensure

ROOT: Final = Path(__file__).resolve().parents[1]
MODELS: Final = ROOT / ".cache" / "bench"
"""Where `benchmarks.models` writes."""
WORKERS: Final = Path(__file__).with_name("peers")
GPTQ, ACTORDER, AWQ, K_QUANT = "gptq:4bit-g64", "gptq:4bit-g64-actorder", "awq:4bit-g64", "gguf:Q4_K_M"

Command = list[str | Path]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a contender is given."""

    model: Path
    rows: Path
    """JSON, the calibration rows."""
    asked: tuple[str, str]
    """How many rows of how many tokens, for a contender that makes the same rows itself."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """One command that quantizes."""

    command: Callable[[Task, Path], Command]
    """To make what it makes in a folder, which does not exist yet."""
    artifact: str = "."
    """The one that is read, as a pattern inside that folder."""
    padded: bool = False
    """On the model that K-quants divide."""
    timed: bool = True
    """Whether every round counts, or only what came out."""


def hermetiq(*specs: str, calibrate: bool = True) -> Callable[[Task, Path], Command]:
    """`hermetiq export` to these specs."""

    def command(task: Task, out: Path) -> Command:
        rows, row_tokens = task.asked
        calibration = ["--rows", rows, "--row-tokens", row_tokens] if calibrate else []
        what = [part for spec in specs for part in ("--to", spec)]
        return [sys.executable, "-m", "hermetiq", "export", task.model, out, *what, *calibration]

    return command


def peer(runtime: str, *options: str) -> Callable[[Task, Path], Command]:
    """A package's worker in the environment that hermetiq makes for that package."""

    def command(task: Task, out: Path) -> Command:
        worker = WORKERS / f"{runtime}_worker.py"
        return [ensure(runtime), worker, task.model, out, task.rows, *options]

    return command


CONTENDERS: Final[Mapping[str, Contender]] = {
    "gptq": Contender(hermetiq(GPTQ), artifact="gptq-*"),
    "gptq-actorder": Contender(hermetiq(ACTORDER), artifact="gptq-*"),
    "awq": Contender(hermetiq(AWQ), artifact="awq-*"),
    "together": Contender(hermetiq(GPTQ, AWQ, K_QUANT), artifact="gptq-*"),
    "gptqmodel": Contender(peer("gptqmodel")),
    "gptqmodel-desc-act": Contender(peer("gptqmodel", "--desc-act")),
    "autoawq": Contender(peer("autoawq")),
    # The pass that GPTQ needs gives the K-quant its importances; alone it gets none.
    "q4_k_m-importance": Contender(hermetiq(GPTQ, K_QUANT), artifact="gguf/*.gguf", padded=True, timed=False),
    "q4_k_m": Contender(hermetiq(K_QUANT, calibrate=False), artifact="gguf/*.gguf", padded=True, timed=False),
}


@dataclasses.dataclass(frozen=True)
class Result:
    """What is known of one contender on one model."""

    seconds: float
    """Median over the rounds."""
    peak: int
    """Largest over the rounds, bytes."""
    kl: float
    shift: float
    """Of the terminator's mean log-probability where answers end."""
    ends: int


@dataclasses.dataclass(frozen=True)
class Goal:
    """A figure and the most it may be."""

    name: str
    figure: Callable[[Mapping[str, Result]], float]
    limit: float


def ratio(field: str, ours: str, theirs: str, limit: float) -> Goal:
    """One contender's figure as a share of another's."""

    def figure(results: Mapping[str, Result]) -> float:
        return float(getattr(results[ours], field)) / float(getattr(results[theirs], field))

    return Goal(f"{field}: {ours} / {theirs}", figure, limit)


def kept(name: str) -> Goal:
    """How far the terminator moved, to either side."""
    return Goal(f"terminator: {name}, nat", lambda results: abs(results[name].shift), 0.15)


GOALS: Final = (
    ratio("kl", "gptq", "gptqmodel-desc-act", 0.9),
    ratio("kl", "gptq", "gptqmodel", 0.55),
    ratio("kl", "gptq-actorder", "gptqmodel-desc-act", 0.7),
    ratio("kl", "awq", "autoawq", 0.6),
    ratio("kl", "q4_k_m-importance", "q4_k_m", 1.0),
    *map(kept, ("gptq", "gptq-actorder", "awq", "q4_k_m-importance")),
    ratio("seconds", "gptq", "gptqmodel", 0.4),
    ratio("peak", "gptq", "gptqmodel", 1.0),
    ratio("seconds", "together", "gptq", 1.6),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["scaled", "dithered"], help="see benchmarks.models")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="CONTENDER")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--row-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=1, help="times that each contender whose time counts runs")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work here, and go on from what an earlier run left")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    options = parser.parse_args()
    # Everybody gets the same threads, and waiting threads sleep.
    os.environ |= {"OMP_NUM_THREADS": str(cores()), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    asked = (str(options.rows), str(options.row_tokens))
    found: dict[str, dict[str, Result]] = {}
    with scratch(options.keep) as place:
        for model in options.models:
            found[model] = contest(place / model, model, options.only, asked, options.rounds)
    for model, results in found.items():
        report(model, results)
    if options.json:
        plain = {model: {name: dataclasses.asdict(result) for name, result in results.items()}
                 for model, results in found.items()}  # fmt: skip
        options.json.write_text(json.dumps(plain, indent=2) + "\n")


def contest(place: Path, model: str, names: Sequence[str], asked: tuple[str, str], rounds: int) -> dict[str, Result]:
    """Let the contenders quantize a model, one at a time, and measure what they made.

    Each keeps a folder in `place`: the artifacts of its last round, and a file for each figure, so that a run that was
    cut off goes on where it was.
    """
    place.mkdir(parents=True, exist_ok=True)
    tasks = {padded: prepare(place, f"{model}-padded" if padded else model, asked) for padded in (False, True)}
    if any("gptqmodel" in name for name in names):
        warm_up(place)
    for number in range(rounds):
        for name in names:
            if number == 0 or CONTENDERS[name].timed:
                quantize(place / name, CONTENDERS[name], tasks[CONTENDERS[name].padded], number)
    for padded, task in tasks.items():
        judge(place, task.model, [name for name in names if CONTENDERS[name].padded is padded])
    return {name: result(place / name) for name in names}


def prepare(place: Path, model: str, asked: tuple[str, str]) -> Task:
    """A model and its calibration rows, made in other processes: this one has to stay small (see `measure.run`)."""
    log = place / "log"
    if not (MODELS / model).exists():
        run([sys.executable, "-m", "benchmarks.models", model], log=log)
    rows = place / f"{model}-{'x'.join(asked)}.json"
    if not rows.exists():
        run([sys.executable, "-m", "benchmarks.rows", MODELS / model, rows, *asked], log=log)
    return Task(MODELS / model, rows, asked)


def warm_up(place: Path) -> None:
    """Let GPTQModel compile what it compiles at its first use, which is not to count."""
    done = place.parent / "warm"
    if not done.exists():
        with tempfile.TemporaryDirectory(dir=place) as folder:
            model, rows = Path(folder) / "model", Path(folder) / "rows.json"
            rows.write_text(json.dumps([list(range(3, 67))] * 4))
            code = "import sys; from pathlib import Path; from tests.fixtures.models import tiny_checkpoint"
            small = "tiny_checkpoint(Path(sys.argv[1]), family='llama', hidden=256, intermediate=512)"
            run([sys.executable, "-c", f"{code}; {small}", model], log=place / "log")
            command = peer("gptqmodel")(Task(model, rows, ("4", "64")), Path(folder) / "out")
            run(command, log=place / "log")
        done.touch()


def quantize(folder: Path, contender: Contender, task: Task, number: int) -> None:
    """One round of one contender, unless it is done."""
    cost_file, out = folder / f"cost-{number}.json", folder / "out"
    if cost_file.exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    command = contender.command(task, out)
    forget(task.model)
    cost = run(command, log=folder / "log")
    print(f"{folder.parent.name:9} {folder.name:19} {cost}", flush=True)
    (artifact,) = out.glob(contender.artifact) if contender.artifact != "." else [out]
    (folder / "artifact").write_text(str(artifact.relative_to(folder)))
    cost_file.write_text(json.dumps(dataclasses.asdict(cost)))


def judge(place: Path, source: Path, names: Sequence[str]) -> None:
    """Figures of the artifacts that have none yet, in one process that reads the source once."""
    waiting = [name for name in names if not (place / name / "figures.json").exists()]
    if not waiting:
        return
    artifacts = [f"{name}={place / name / (place / name / 'artifact').read_text()}" for name in waiting]
    command = [sys.executable, "-m", "benchmarks.fidelity", str(source), *artifacts]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            figures = json.loads(line)
            (place / figures.pop("name") / "figures.json").write_text(json.dumps(figures))
    if child.returncode:
        raise SystemExit(f"benchmarks.fidelity failed ({child.returncode})")


def result(folder: Path) -> Result:
    """What the files of a contender say."""
    costs = [Cost(**json.loads(file.read_text())) for file in sorted(folder.glob("cost-*.json"))]
    figures: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return Result(
        seconds=statistics.median(cost.seconds for cost in costs),
        peak=max(cost.peak for cost in costs),
        kl=figures["kl"],
        shift=figures["terminator"] - figures["terminator_source"],
        ends=figures["ends"],
    )


def report(model: str, results: Mapping[str, Result]) -> None:
    """A line for each contender, then each goal whose contenders all ran, and whether it was met."""
    print(f"\n{model}\n{'':19} {'KL':>7} {'terminator':>11} {'ends':>5} {'wall':>9} {'peak':>10}")
    for name, it in results.items():
        costs = f"{it.seconds:7.1f} s {it.peak / 2**30:6.2f} GiB"
        print(f"{name:19} {it.kl:7.4f} {it.shift:+11.3f} {it.ends:5} {costs}")
    for goal in GOALS:
        try:
            figure = goal.figure(results)
        except KeyError:
            continue
        verdict = "met" if figure <= goal.limit else "MISSED"
        print(f"{goal.name:42} {figure:6.3f}, goal {goal.limit:.3g}: {verdict}")


@contextmanager
def scratch(keep: Path | None) -> Iterator[Path]:
    """Where contenders work: a folder to keep, or one that goes away."""
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
    else:
        (ROOT / ".cache").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder:
            yield Path(folder)


if __name__ == "__main__":
    main()
