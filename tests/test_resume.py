"""An export that was killed at any moment is continued to the very bytes it would have had."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hermetiq.errors import HermetiqError, Refusal
from hermetiq.manifest import Manifest
from hermetiq.pipeline import export, prepare
from hermetiq.place import JOURNAL
from hermetiq.plan import Job
from hermetiq.quantize.spec import parse
from tests.fixtures.export_worker import ROWS
from tests.fixtures.forks import Forks, content
from tests.fixtures.models import copy_of, tiny_checkpoint

SPECS = ("gptq:4bit-g32", "awq:4bit-g32", "gguf:Q4_K_M", "exl2:4.5bpw")
KILLS = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("resume") / "model", family="llama", tokenizer="bpe", layers=3)


@pytest.fixture(scope="module")
def exports(model: Path) -> Iterator[Forks]:
    """All formats of `model`, in forks; EXL2's blocks come behind the pass."""
    with Forks("tests.fixtures.export_worker", model, *SPECS) as forks:
        yield forks


@pytest.fixture(scope="module")
def whole(exports: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an export that nobody disturbs leaves."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert exports.run(folder)
    assert all(item.ending for item in Manifest.read(folder).artifacts)
    return content(folder)


def test_killed_at_random_moments(exports: Forks, whole: dict[str, bytes], tmp_path: Path) -> None:
    """`kill -9`, twenty times and more, spread over the whole duration; resumed runs are killed as well."""
    draw = random.Random(5)
    seconds = time.perf_counter()
    assert exports.run(tmp_path / "timed")
    seconds = time.perf_counter() - seconds
    blocks = list[int]()
    while len(blocks) < KILLS:
        out = tmp_path / f"out-{len(blocks)}"
        while not exports.run(out, seconds=draw.uniform(0, seconds)):
            blocks.append(len(list((out / JOURNAL).glob("block-*.json"))))
        assert content(out) == whole
    # Early, late and between.
    assert len(set(blocks)) > 2


def test_killed_before_any_file_operation(exports: Forks, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Between the files of the artifacts, before the manifest, while the journal is taken away: everywhere."""
    finished, step, left = False, 0, set[tuple[str, int]]()
    while not finished:
        out = tmp_path / f"out-{step}"
        finished = exports.run(out, step=step)
        found = content(out)
        # Nothing has its name before it is what it is to be.
        assert {name: data for name, data in found.items() if name in whole}.items() <= whole.items()
        left |= {(name, len(data)) for name, data in found.items()}
        assert finished or exports.run(out)
        assert content(out) == whole
        # No multiple of the operations that one file takes, which would always be killed at the same ones.
        step += 7
    # It was killed in the middle of a block, of an artifact, and while a complete file was settled.
    assert step > 5 * KILLS
    names = {name for name, _ in left}
    assert f"{JOURNAL}/block-00001.safetensors" in names
    assert any(name.endswith(".safetensors.partial") and JOURNAL not in name for name in names)
    (file,) = (name for name in whole if name.endswith(".gguf"))
    assert (f"{file}.partial", len(whole[file])) in left


def test_sequential_calibration_is_resumed_too(model: Path, tmp_path: Path) -> None:
    with Forks("tests.fixtures.export_worker", "--sequential", model, SPECS[0]) as exports:
        assert exports.run(tmp_path / "whole")
        for step in (12, 22, 33):
            assert not exports.run(tmp_path / str(step), step=step)
            assert exports.run(tmp_path / str(step))
            assert content(tmp_path / str(step)) == content(tmp_path / "whole")


def test_the_command_itself_is_killed_and_goes_on(model: Path, tmp_path: Path) -> None:
    def command(out: Path, *options: str) -> subprocess.Popen[bytes]:
        sizes = [f"--{name.replace('_', '-')}={value}" for name, value in ROWS.items()]
        arguments = ["export", str(model), str(out), f"--to={SPECS[0]}", *sizes, "--device=cpu", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        return subprocess.Popen(
            [sys.executable, "-m", "hermetiq", *arguments], env=environment, stdout=subprocess.DEVNULL
        )

    process = command(tmp_path / "out")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob(f"{JOURNAL}/block-00000.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert command(tmp_path / "out", "--resume").wait(timeout=60) == 0
    export(asked(model), tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def interrupted(job: Job, out: Path, *, after: int = 1, **options: Any) -> None:
    """An export stopped by Ctrl-C behind so many blocks."""

    def tick(what: str, share: float) -> None:
        if what.startswith("calibrating") and len(list(out.glob(f"{JOURNAL}/block-*.json"))) >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(job, out, tick=tick, **options)


@cache
def asked(model: Path, *specs: str, **options: Any) -> Job:
    return prepare(model, [parse(spec) for spec in specs or SPECS[:1]], **{**ROWS, **options})


def test_without_resume_nothing_happens_to_an_unfinished_export(model: Path, tmp_path: Path) -> None:
    interrupted(asked(model), tmp_path / "out")
    left = content(tmp_path / "out")
    with pytest.raises(HermetiqError, match=r"unfinished export lies here.*--resume goes on, --overwrite drops it"):
        export(asked(model), tmp_path / "out")
    assert content(tmp_path / "out") == left


@pytest.mark.parametrize(
    ("specs", "options", "difference"),
    [
        (SPECS[:1], {"seed": 1}, "calibration: "),
        (SPECS[:1], {"rows": 3}, "calibration: "),
        (SPECS[:2], {}, "specs: gptq:4bit-g32 -> gptq:4bit-g32, awq:4bit-g32"),
        (("gptq:4bit-g64",), {}, "specs: gptq:4bit-g32 -> gptq:4bit-g64"),
        (("gptq:4bit-g32", "gguf:Q8_0"), {}, "importance matrix: no -> yes"),
        (SPECS[:1], {"sequential": True}, "sequential: no -> yes"),
    ],
)
def test_another_request_is_refused_with_the_difference(
    model: Path, tmp_path: Path, specs: tuple[str, ...], options: dict[str, Any], difference: str
) -> None:
    interrupted(asked(model), tmp_path / "out")
    left = content(tmp_path / "out")
    with pytest.raises(HermetiqError, match=r"--overwrite begins anew") as refused:
        export(asked(model, *specs, **options), tmp_path / "out", resume=True)
    assert difference in refused.value.what
    assert content(tmp_path / "out") == left


def test_another_source_is_refused(model: Path, tmp_path: Path) -> None:
    interrupted(asked(model), tmp_path / "out")
    other = tiny_checkpoint(tmp_path / "model", family="llama", tokenizer="bpe", layers=3, seed=1)
    with pytest.raises(HermetiqError, match=r"another: source: \w+ -> \w+"):
        export(asked(other), tmp_path / "out", resume=True)


def test_overwrite_begins_anew(model: Path, tmp_path: Path) -> None:
    interrupted(asked(model), tmp_path / "out")
    export(asked(model, seed=1), tmp_path / "out", overwrite=True)
    export(asked(model, seed=1), tmp_path / "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_overwrite_begins_anew_where_artifacts_were_finished(
    exports: Forks, whole: dict[str, bytes], model: Path, tmp_path: Path
) -> None:
    """The GPTQ folder was complete, the AWQ folder half written, and no manifest said whose they were."""
    step, out = 0, tmp_path / "out"
    while not (out / "gptq-4bit-g32" / "model.safetensors").exists() or (out / "hermetiq.json").exists():
        out, step = tmp_path / f"out-{step}", step + 5
        exports.run(out, step=70 + step)
    left = content(out)
    with pytest.raises(HermetiqError, match="not empty"):
        export(asked(model, *SPECS), out)
    other = asked(model, "awq:4bit-g32")
    with pytest.raises(HermetiqError, match=r"gptq-4bit-g32/\S+ was not made"):
        export(other, out, overwrite=True)
    assert content(out) == left
    (out / "awq-4bit-g32" / "mine.txt").parent.mkdir(exist_ok=True)
    (out / "awq-4bit-g32" / "mine.txt").write_text("x")
    export(asked(model, *SPECS), out, overwrite=True, threads=1)
    assert content(out).keys() - whole.keys() == {"awq-4bit-g32/mine.txt"}


def test_a_finished_export_is_not_made_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    made = export(asked(model, *SPECS), out)
    monkeypatch.setattr("hermetiq.pipeline.make_room", None)
    assert export(asked(model, *SPECS), out, resume=True) == made
    monkeypatch.undo()
    for other in (asked(model, *SPECS[:2]), asked(model, *SPECS, seed=1), asked(model, *SPECS, imatrix=False)):
        with pytest.raises(HermetiqError, match="not empty"):
            export(other, out, resume=True)


def test_a_finished_export_that_was_calibrated_otherwise_is_another(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = export(asked(model, SPECS[0], sequential=True), out)
    assert made.calibration
    assert made.calibration.sequential
    assert export(asked(model, SPECS[0], sequential=True), out, resume=True) == made
    with pytest.raises(HermetiqError, match="not empty"):
        export(asked(model, SPECS[0]), out, resume=True)


def test_a_finished_export_that_was_damaged_is_no_finished_one(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(asked(model), out)
    sound = content(out)
    (out / "gptq-4bit-g32" / "config.json").write_text("{}")
    with pytest.raises(HermetiqError, match="not empty"):
        export(asked(model), out, resume=True)
    export(asked(model), out, resume=True, overwrite=True)
    assert content(out) == sound


def test_resume_in_an_empty_folder_begins(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    made = export(asked(model), tmp_path / "out", resume=True)
    assert Manifest.read(tmp_path / "out") == made


def test_an_interrupted_overwrite_keeps_the_earlier_export_until_it_is_replaced(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(asked(model), out)
    before = content(out)
    interrupted(asked(model, "gptq:4bit-g64"), out, overwrite=True)
    assert before.items() <= content(out).items()
    export(asked(model, "gptq:4bit-g64"), out, overwrite=True, resume=True)
    export(asked(model, "gptq:4bit-g64"), tmp_path / "fresh")
    assert content(out) == content(tmp_path / "fresh")


def test_a_block_that_rotted_is_made_again_and_said_so(model: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", list[str]()
    interrupted(asked(model), out, after=2)
    block = out / JOURNAL / "block-00001.safetensors"
    block.write_bytes(block.read_bytes()[:-1] + b"\7")
    export(asked(model), out, resume=True, tick=lambda what, share: said.append(what))
    assert "made again: block-00001: its tensors are not those that were recorded" in said
    export(asked(model), tmp_path / "fresh")
    assert content(out) == content(tmp_path / "fresh")


def test_stopped_before_its_first_block_an_export_leaves_nothing(model: Path, tmp_path: Path) -> None:
    broken = copy_of(model, tmp_path / "model")
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] = torch.nan
    (broken / "model.safetensors").unlink()
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refusal, match="weight-nan"):
        export(asked(broken), tmp_path / "out")
    assert not (tmp_path / "out").exists()
