"""A GPTQ, AWQ or EXL2 folder as the packages that people load it with compute it, each package in its own environment.

Our own reader and our own writer may agree on a mistake; a reader that somebody else wrote decides. The package runs in
a child process, which is asked everything at once, so that the model is loaded once: `package_worker.py` for those
that give a model of transformers, `exllamav2_worker.py` for the one that is all its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from hermetiq.errors import CheckFailed
from hermetiq.machine import cores
from hermetiq.progress import Ticker, part, silent

from .environments import ensure, runtime, variables

WORKER = Path(__file__).with_name("package_worker.py")
OWN_WORKERS: dict[str, Path] = {"exllamav2": Path(__file__).with_name("exllamav2_worker.py")}
"""By runtime, where `WORKER` cannot drive it."""
TIMEOUT = 3600.0
"""Seconds for everything; without kernels of their own for the CPU, packages unpack every weight for every token."""
LOG_TAIL = 1500
"""Characters of the package's output that an error shows."""


@dataclass(frozen=True)
class Question:
    """Everything that a package is asked about one artifact."""

    rows: Sequence[Sequence[int]]
    positions: Sequence[tuple[int, int]]
    """(row, position): what does the model expect to come next?"""
    prompts: Sequence[Sequence[int]]
    """To be continued greedily, until one of the artifact's own stops."""
    texts: Sequence[str]
    """To be cut into tokens, nothing added."""
    max_tokens: int


@dataclass(frozen=True)
class Answers:
    """What the package made of a `Question`."""

    logits: npt.NDArray[np.float32]
    """(positions, vocabulary)"""
    continuations: tuple[tuple[int, ...], ...]
    """One for each prompt, with the id that ended it."""
    stops: frozenset[int]
    """Ids that the package stops on, taken from the artifact's files."""
    tokens: tuple[tuple[int, ...], ...] | None
    """One for each text; None where the package's transformers cannot read the tokenizer."""
    tokenizer_error: str
    weights: Mapping[str, str] | None = None
    """By tensor name, the SHA-256 of each linear as the package dequantizes it: float16, (out, in), little-endian.

    None from packages that keep no such matrix: theirs are multiplied as they are unpacked."""


def ask(name: str, folder: Path, question: Question, *, timeout: float = TIMEOUT, tick: Ticker = silent) -> Answers:
    """Load the artifact in `folder` with the runtime `name` and ask it; `timeout` is in seconds.

    Raises:
        CheckFailed: the package does not load the artifact, or fails on a question; the error shows the end of its
            output.
        HermetiqError: this machine lacks what the package needs, or it cannot be installed here.
    """
    python = ensure(name, part(tick, 0.0, 0.5))
    tick(f"{name} reads {folder.name}", 0.5)
    with tempfile.TemporaryDirectory(prefix="hermetiq-") as scratch:
        place = Path(scratch)
        (place / "request.json").write_text(json.dumps(_request(name, folder, question)), encoding="utf-8")
        with (place / "log").open("w+", encoding="utf-8", errors="replace") as log:
            try:
                done = subprocess.run(
                    [str(python), "-I", str(OWN_WORKERS.get(name, WORKER)), scratch],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=_environment() | variables(runtime(name).environment, python),
                    timeout=timeout,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise _failure(f"{name} gave no answer within {timeout:.0f} s", folder, log) from None
            if done.returncode or not (place / "answers.json").is_file():
                raise _failure(f"{name} does not run this artifact", folder, log)
        return _answers(place)


def _request(name: str, folder: Path, question: Question) -> dict[str, Any]:
    return {
        "runtime": name,
        "folder": str(folder.resolve()),
        "threads": cores(),
        "rows": [list(row) for row in question.rows],
        "positions": [list(place) for place in question.positions],
        "prompts": [list(prompt) for prompt in question.prompts],
        "texts": list(question.texts),
        "max_tokens": question.max_tokens,
    }


def _environment() -> dict[str, str]:
    """Of every child: off the network, with no more threads than there are cores."""
    count = str(cores())
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": count,
        # Waiting threads sleep: spinning, two busy programs slow each other tenfold.
        "OMP_WAIT_POLICY": "PASSIVE",
        # Compiling takes a minute and a C++ compiler, and changes nothing but speed.
        "TORCHDYNAMO_DISABLE": "1",
        # gptqmodel starts eight workers however few cores there are, and then waits for itself.
        "GPTQMODEL_CPU_WORKERS": count,
    }


def _answers(place: Path) -> Answers:
    logits = np.load(place / "logits.npy", allow_pickle=False)
    told = json.loads((place / "answers.json").read_text(encoding="utf-8"))
    return Answers(
        logits=logits,
        continuations=tuple(map(tuple, told["answers"])),
        stops=frozenset(told["stops"]),
        tokens=None if told["tokens"] is None else tuple(map(tuple, told["tokens"])),
        tokenizer_error=told.get("tokenizer_error", ""),
        weights=told.get("weights"),
    )


def _failure(what: str, folder: Path, log: IO[str]) -> CheckFailed:
    """With the end of the package's output, in which this machine's folders are left out."""
    log.flush()
    log.seek(0)
    said = log.read()[-LOG_TAIL:].replace(f"{folder.resolve().parent}{os.sep}", "").strip()
    return CheckFailed(
        f"{what}; its output ends:\n{said}",
        where=folder.name,
        remedy="the artifact breaks in this package as it would for its users; do not publish it for it",
    )
