"""EXL2 by size, against GPTQ and against one width for all: `python -m benchmarks.exl2 [--keep DIR]`.

All targets are made from one measurement. What every layer stored alike would be worth comes from the same command: it
is given a measurement in which nothing but that one rung is any good.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import forget, run
from benchmarks.quantize import MODELS, judge, scratch
from hermetiq.machine import cores

TARGETS: Final = (2.5, 3.0, 4.0, 4.65, 6.0, 8.0)
GPTQ: Final = "gptq:4bit-g64"
UNIFORM: Final = 8
"""Place in the ladder of the rung that is held against a choice: 4 bits in groups of 128."""
BELOW: Final = 0.005
"""Most that a size may lie below its target."""
AGAINST_UNIFORM: Final = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["scaled"], help="see benchmarks.models")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--row-tokens", type=int, default=512)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work here, and go on from what an earlier run left")
    parser.add_argument("--phases", type=Path, metavar="MODEL", help="walk through this model and print the seconds")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(cores()), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    if options.phases:
        print(json.dumps(phases(options.phases, options.rows, options.row_tokens)))
        return
    asked = ["--rows", str(options.rows), "--row-tokens", str(options.row_tokens)]
    with scratch(options.keep) as place:
        for model in options.models:
            contest(place / model, model, asked)


def contest(place: Path, model: str, asked: Sequence[str]) -> None:
    """Make all artifacts of a model, measure them, and say which goals were met."""
    place.mkdir(parents=True, exist_ok=True)
    if not (MODELS / model).exists():
        run([sys.executable, "-m", "benchmarks.models", model], log=place / "log")
    alike, same = sizes(MODELS / model)
    targets = [*TARGETS, alike, same]
    specs = [GPTQ, *(f"exl2:{target}bpw" for target in targets)]
    chosen = export(place, "chosen", MODELS / model, specs, asked)
    flat = flattened(place / "chosen" / "measurement.json", place / "flat.json")
    uniform = export(place, "uniform", MODELS / model, specs[-2:-1], [*asked, "--measurement", str(flat)])
    made = {f"{item['spec']}": item for item in chosen["artifacts"]} | {"uniform": uniform["artifacts"][0]}
    kl = {name: figures["kl"] for name, figures in read(place, MODELS / model, made).items()}
    print(f"\n{model}")
    for name, item in made.items():
        expected = f"expected {item['expected_kl']:.4f}" if item["expected_kl"] is not None else ""
        print(f"{name:18} {item['nominal_bpw']:6.3f} bits {item['bytes'] / 1e6:7.1f} MB  KL {kl[name]:.4f} {expected}")
    names = [f"exl2:{target}bpw" for target in TARGETS]
    short = max(1 - made[name]["nominal_bpw"] / target for name, target in zip(names, TARGETS, strict=True))
    goal("share of a target left unspent", short, BELOW)
    goal("largest ratio of KL from one target to the next", max(kl[b] / kl[a] for a, b in pairwise(names)), 1.0)
    goal(f"KL: {specs[-1]} / {GPTQ}", kl[specs[-1]] / kl[GPTQ], 1.0)
    goal(f"KL: {specs[-2]} / uniform of that size", kl[specs[-2]] / kl["uniform"], AGAINST_UNIFORM)
    seconds = timed(place, MODELS / model, asked)
    print(f"seconds: {seconds}")
    goal("seconds: measuring / walk", seconds["measuring"] / seconds["walk"], 1.0)


def goal(name: str, figure: float, limit: float) -> None:
    print(f"{name:50} {figure:6.3f}, goal {limit:.3g}: {'met' if figure <= limit else 'MISSED'}")


def sizes(model: Path) -> tuple[float, float]:
    """Targets in thousandths of a bit: of every layer on `UNIFORM`, from above; of GPTQ's folder, from below."""
    from hermetiq.checkpoint import open_checkpoint
    from hermetiq.formats.linear_plan import linears, plan
    from hermetiq.quantize.ladder import LADDER, stored_bits
    from hermetiq.quantize.spec import parse

    config = open_checkpoint(model).model
    shapes = linears(config).values()
    bits = sum(stored_bits(LADDER[UNIFORM].groups(width), height) for height, width in shapes)
    alike = ceil(1000 * bits / sum(height * width for height, width in shapes)) / 1000
    return alike, int(1000 * plan(config, parse(GPTQ)).nominal_bits_per_weight) / 1000


def export(place: Path, name: str, model: Path, specs: Sequence[str], asked: Sequence[str]) -> Mapping[str, Any]:
    """The manifest of an export, which is made unless it is there."""
    out = place / name
    if not (out / "hermetiq.json").exists():
        what = [part for spec in specs for part in ("--to", spec)]
        forget(model)
        cost = run(
            [sys.executable, "-m", "hermetiq", "export", model, out, *what, *asked, "--resume"], log=place / "log"
        )
        print(f"{name:18} {cost}", flush=True)
    manifest: dict[str, Any] = json.loads((out / "hermetiq.json").read_text())
    return manifest


def flattened(measured: Path, target: Path) -> Path:
    """The measurement with every rung equally bad, up to the one that all layers shall have."""
    document = json.loads(measured.read_text())
    for layer in document["layers"].values():
        layer["errors"] = [float(place < UNIFORM) for place in range(len(layer["errors"]))]
        layer["factor"] = 1.0
    target.write_text(json.dumps(document))
    return target


def read(place: Path, model: Path, made: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Figures of each artifact, by name."""
    folders = {name: place / f"read-{name.replace(':', '-')}" for name in made}
    for name, item in made.items():
        folders[name].mkdir(exist_ok=True)
        export_name = "uniform" if name == "uniform" else "chosen"
        (folders[name] / "artifact").write_text(f"../{export_name}/{item['file']}")
    judge(place, model, [folder.name for folder in folders.values()])
    return {name: json.loads((folder / "figures.json").read_text()) for name, folder in folders.items()}


def timed(place: Path, model: Path, asked: Sequence[str]) -> dict[str, float]:
    """Seconds of the phases, taken in a process that does nothing else."""
    log = place / "phases"
    run([sys.executable, "-m", "benchmarks.exl2", "--phases", model, *asked], log=log)
    seconds: dict[str, float] = json.loads(log.read_text().splitlines()[-1])
    return seconds


def phases(model: Path, rows: int, row_tokens: int) -> dict[str, float]:
    """Walk through a model and measure its blocks, as an export does; and walk once more with the probes."""
    import torch

    from hermetiq.calibration.observe import Block, observe
    from hermetiq.calibration.sensitivity import choose_probe_rows
    from hermetiq.chat.calibration import calibration_rows
    from hermetiq.chat.contract import derive
    from hermetiq.checkpoint import open_checkpoint
    from hermetiq.quantize.block import BlockSolver
    from hermetiq.quantize.ladder import LADDER
    from hermetiq.quantize.measure import disturbed

    checkpoint = open_checkpoint(model)
    drawn = calibration_rows(checkpoint, derive(checkpoint), rows=rows, row_tokens=row_tokens).rows
    spent = {"measuring": 0.0, "sharing": 0.0}

    def visit(block: Block) -> None:
        if block.weights:
            solver = BlockSolver.of(block, checkpoint.model)
            begin = time.perf_counter()
            # Factorising and folding is for all formats.
            solver.measure(LADDER[:1])
            shared = time.perf_counter()
            solver.measure(LADDER)
            spent["sharing"] += shared - begin
            spent["measuring"] += time.perf_counter() - shared

    def walked(probes: bool, visitor: Any) -> float:
        begin = time.perf_counter()
        observe(
            checkpoint.config,
            checkpoint.load,
            drawn,
            visitor,
            disturb=(lambda _, weight: disturbed(weight)) if probes else None,
            probe_rows=choose_probe_rows(drawn) if probes else (),
        )
        return time.perf_counter() - begin

    torch.set_num_threads(cores())
    walk = walked(False, visit) - sum(spent.values())
    return {"walk": walk, **spent, "probes": walked(True, lambda block: None) - walk}


if __name__ == "__main__":
    main()
