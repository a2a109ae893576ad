"""Files appear whole or not at all, always with the same bytes, and several come from one read."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from hermetiq.errors import HermetiqError, Refusal
from hermetiq.formats.gguf import plan, write
from hermetiq.formats.gguf.names import interleaved_rows
from hermetiq.quantize import ggml
from hermetiq.quantize.spec import GGUF_RECIPES
from tests.formats.gguf.small import CONFIG, NARROW, MemorySource, header, random_weights, write_file
from tests.oracles import gguf_bytes

SMALL = replace(NARROW, layers=2)
LAST, FINAL = "model.norm.weight", "output_norm.weight"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_several_files_come_from_one_read_of_each_tensor(tmp_path: Path) -> None:
    source = MemorySource(random_weights(SMALL))
    write({tmp_path / recipe: plan(header(SMALL), recipe) for recipe in GGUF_RECIPES}, source, threads=2)
    assert source.read == list(SMALL.expected_tensors())
    for recipe in GGUF_RECIPES:
        alone = write_file(tmp_path / "alone", SMALL, recipe, source.weights)
        assert (tmp_path / recipe).read_bytes() == alone.read_bytes()


def test_bytes_do_not_depend_on_threads_or_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned, source = plan(header(SMALL), "Q4_K_M"), MemorySource(random_weights(SMALL))
    write({tmp_path / "1": planned}, source, threads=1)
    monkeypatch.setattr(ggml, "CHUNK_WEIGHTS", 1000)
    write({tmp_path / "4": planned}, source, threads=4)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "4").read_bytes()


def test_the_file_has_the_planned_size_and_types_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    planned = plan(header(CONFIG), "Q3_K_M")
    path = write_file(tmp_path / "new" / "model.gguf", CONFIG, "Q3_K_M", random_weights(CONFIG))
    assert path.stat().st_size == planned.size
    assert names(path.parent) == ["model.gguf"]
    found = {tensor.name: (tensor.tensor_type, tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    assert found == {tensor.name: (tensor.choice.type, tensor.bytes) for tensor in planned.tensors}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_source_gives_the_bytes_of_its_float32_copy(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = random_weights(SMALL, dtype=dtype)
    half = write_file(tmp_path / "half", SMALL, "Q4_K_M", weights)
    full = write_file(tmp_path / "full", SMALL, "Q4_K_M", {name: weight.float() for name, weight in weights.items()})
    assert half.read_bytes() == full.read_bytes()


def test_f32_holds_the_source_exactly_with_the_rows_of_q_and_k_interleaved(tmp_path: Path) -> None:
    config = replace(SMALL, attention_bias=True)
    weights = random_weights(config, dtype=torch.bfloat16)
    tensors = {t.name: t.data for t in gguf.GGUFReader(write_file(tmp_path / "f", config, "F32", weights)).tensors}
    block = "model.layers.1."
    for suffix in ("weight", "bias"):
        for part, heads in (("q", 6), ("k", 3)):
            stored = weights[f"{block}self_attn.{part}_proj.{suffix}"].float().numpy()
            # Row 2i of a head is row i of the source's head, row 2i + 1 its row i + 8.
            expected = np.stack([stored.reshape(heads, 2, 8, -1)[:, half] for half in (0, 1)], axis=2)
            np.testing.assert_array_equal(tensors[f"blk.1.attn_{part}.{suffix}"], expected.reshape(stored.shape))
        stored = weights[f"{block}self_attn.v_proj.{suffix}"].float().numpy()
        np.testing.assert_array_equal(tensors[f"blk.1.attn_v.{suffix}"], stored)
    np.testing.assert_array_equal(tensors["token_embd.weight"], weights["model.embed_tokens.weight"].float().numpy())


def test_sorting_the_row_order_leads_back() -> None:
    order = interleaved_rows(3, 8)
    assert sorted(order) == list(range(24))
    np.testing.assert_array_equal(order[:4], [0, 4, 1, 5])
    np.testing.assert_array_equal(order[np.argsort(order)], np.arange(24))


def test_a_tied_head_is_not_written(tmp_path: Path) -> None:
    weights = random_weights(SMALL)
    stored_twice = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}
    tied = gguf.GGUFReader(write_file(tmp_path / "tied", SMALL, "F16", stored_twice))
    assert "output.weight" not in {tensor.name for tensor in tied.tensors}


def test_progress_counts_to_the_size_of_all_files(tmp_path: Path) -> None:
    plans = {tmp_path / recipe: plan(header(SMALL), recipe) for recipe in ("Q8_0", "F16")}
    seen: list[tuple[str, int]] = []
    write(plans, MemorySource(random_weights(SMALL)), threads=2, on_tensor=lambda *step: seen.append(step))
    assert [name for name, _ in seen] == [tensor.name for tensor in plans[tmp_path / "F16"].tensors]
    assert seen[-1][1] == sum(planned.size for planned in plans.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_its_tensors_name(value: float, tmp_path: Path) -> None:
    weights = random_weights(SMALL, dtype=torch.bfloat16)
    weights["model.layers.1.mlp.up_proj.weight"][159, 95] = value
    with pytest.raises(Refusal) as refusal:
        write_file(tmp_path / "model.gguf", SMALL, "Q4_K_M", weights)
    (finding,) = refusal.value.findings
    assert (finding.rule, finding.file) == ("weight-nan", "model.safetensors")
    assert finding.field == "model.layers.1.mlp.up_proj.weight"
    assert not names(tmp_path)


def test_a_weight_too_large_for_half_is_refused_by_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights = random_weights(SMALL)
    weights["model.layers.0.mlp.up_proj.weight"][3, 3] = 70000.0
    with pytest.raises(Refusal, match=r"model\.layers\.0\.mlp\.up_proj\.weight.*f16-overflow.*F16"):
        write_file(tmp_path / "model.gguf", SMALL, "F16", weights)
    write_file(tmp_path / "model.gguf", SMALL, "BF16", weights)
    capfd.readouterr()


@pytest.mark.parametrize(("value", "lost"), [(2.0**-25, True), (2.0**-24, False), (0.0, False)])
def test_a_row_that_half_rounds_to_zero_is_refused(value: float, lost: bool, tmp_path: Path) -> None:
    weights = random_weights(SMALL)
    weights["model.layers.0.mlp.up_proj.weight"][3] = -value
    with pytest.raises(Refusal, match="f16-overflow") if lost else nullcontext():
        write_file(tmp_path / "model.gguf", SMALL, "F16", weights)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    weights = random_weights(SMALL)
    weights[LAST] = weights[LAST][:-1]
    with pytest.raises(Refusal, match=r"source-incomplete.*\(95,\).*\(96,\)"):
        write_file(tmp_path / "model.gguf", SMALL, "Q8_0", weights)
    assert not names(tmp_path)


def test_a_source_type_without_a_reading_is_refused(tmp_path: Path) -> None:
    weights = {name: weight.double() for name, weight in random_weights(SMALL).items()}
    with pytest.raises(HermetiqError, match="float64"):
        write_file(tmp_path / "model.gguf", SMALL, "Q8_0", weights)


def test_plans_of_different_models_are_a_mistake(tmp_path: Path) -> None:
    plans = {tmp_path / "a": plan(header(SMALL), "F16"), tmp_path / "b": plan(header(NARROW), "F16")}
    with pytest.raises(ValueError, match="different models"):
        write(plans, MemorySource(random_weights(SMALL)), threads=1)


class Failing(MemorySource):
    """Gives up at the last tensor, when nearly everything is written."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(random_weights(SMALL))
        self.error = error

    def load(self, name: str) -> torch.Tensor:
        if name == LAST:
            raise self.error
        return super().load(name)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("source", "on_tensor", "error"),
    [
        (Failing(RuntimeError("disk on fire")), None, RuntimeError),
        (Failing(KeyboardInterrupt()), None, KeyboardInterrupt),
        (MemorySource(random_weights(SMALL)), interrupt, KeyboardInterrupt),
    ],
    ids=["load fails", "interrupted in load", "interrupted between tensors"],
)
def test_whatever_interrupts_leaves_old_files_as_they_were_and_nothing_new(
    source: MemorySource, on_tensor: Callable[[str, int], None] | None, error: type[BaseException], tmp_path: Path
) -> None:
    (tmp_path / "old.gguf").write_text("of yesterday")
    plans = {tmp_path / name: plan(header(SMALL), "Q8_0") for name in ("old.gguf", "new.gguf")}
    with pytest.raises(error):
        write(plans, source, threads=2, on_tensor=on_tensor)
    assert names(tmp_path) == ["old.gguf"]
    assert (tmp_path / "old.gguf").read_text() == "of yesterday"


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("tensor", ["blk.0.attn_norm.weight", "blk.1.ffn_up.weight"])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tensor: str, tmp_path: Path) -> None:
    planned = plan(header(SMALL), "F32")
    # The disk ends inside a small tensor, whose bytes wait in a buffer and fail again on closing, or a large one.
    end = len(planned.header) + gguf_bytes.parse(planned.header).tensors[tensor].offset + 100
    with disk_of(end), pytest.raises(HermetiqError, match=r"model\.gguf: cannot write: File too large"):
        write_file(tmp_path / "model.gguf", SMALL, "F32", random_weights(SMALL))
    assert not names(tmp_path)


def test_a_disk_that_fills_at_the_last_moment_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HermetiqError, match=r"model\.gguf: cannot write: No space left on device"):
        write_file(tmp_path / "model.gguf", SMALL, "Q8_0", random_weights(SMALL))
    assert not names(tmp_path)


def test_a_file_that_is_not_as_planned_never_gets_its_name(tmp_path: Path) -> None:
    def meddle(name: str, _: int) -> None:
        if name == FINAL:
            with (tmp_path / "model.gguf.partial").open("ab") as file:
                file.write(bytes(1 << 20))

    with pytest.raises(HermetiqError, match="planned"):
        write(
            {tmp_path / "model.gguf": plan(header(SMALL), "Q8_0")},
            MemorySource(random_weights(SMALL)),
            threads=2,
            on_tensor=meddle,
        )
    assert not names(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HermetiqError, match="cannot write"):
        write_file(tmp_path / "file" / "model.gguf", SMALL, "Q8_0", random_weights(SMALL))


def test_a_complete_file_may_be_read_and_revised_before_it_gets_its_name(tmp_path: Path) -> None:
    source, gains = MemorySource(random_weights(SMALL)), np.linspace(0, 2, SMALL.hidden, dtype=np.float32)

    def revise(path: Path, complete: Path) -> dict[str, ggml.Float32]:
        assert (complete.parent, path.exists()) == (tmp_path, False)
        read = {tensor.name: tensor.data for tensor in gguf.GGUFReader(complete).tensors}
        np.testing.assert_array_equal(read[FINAL], source.weights[LAST])
        return {FINAL: gains} if path.name == "revised.gguf" else {}

    plans = {tmp_path / name: plan(header(SMALL), "Q4_0") for name in ("revised.gguf", "plain.gguf")}
    digests = write(plans, source, threads=2, revise=revise)
    assert names(tmp_path) == ["plain.gguf", "revised.gguf"]
    assert digests == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in plans}
    plain, revised = ({t.name: t.data for t in gguf.GGUFReader(tmp_path / name).tensors} for name in names(tmp_path))
    assert [name for name in plain if not np.array_equal(plain[name], revised[name])] == [FINAL]
    np.testing.assert_array_equal(revised[FINAL], gains)
    # By hand: nothing but those bytes differs.
    before, after = ((tmp_path / name).read_bytes() for name in names(tmp_path))
    start = len(plans[tmp_path / "plain.gguf"].header) + gguf_bytes.parse(before).tensors[FINAL].offset
    assert after == before[:start] + gains.astype("<f4").tobytes() + before[start + gains.nbytes :]


@pytest.mark.parametrize(
    ("revision", "error"),
    [
        ({"output_norm.weight": np.zeros(95, np.float32)}, ValueError),
        ({"token_embd.weight": np.zeros((288, 96), np.float32)}, ValueError),
        ({"no_such.weight": np.zeros(96, np.float32)}, KeyError),
    ],
    ids=["another shape", "quantized", "unknown"],
)
def test_what_cannot_be_put_into_a_file_is_not(
    revision: dict[str, ggml.Float32], error: type[Exception], tmp_path: Path
) -> None:
    plans = {tmp_path / "model.gguf": plan(header(SMALL), "Q4_0")}
    with pytest.raises(error):
        write(plans, MemorySource(random_weights(SMALL)), threads=2, revise=lambda *_: revision)
    assert not names(tmp_path)


def test_a_killed_process_leaves_no_final_name(tmp_path: Path) -> None:
    script = f"""
        import os, signal
        from pathlib import Path
        from hermetiq.formats.gguf import plan, write
        from tests.formats.gguf.small import NARROW, MemorySource, header, random_weights

        def die(name, written):
            if name == "blk.7.ffn_norm.weight":
                os.kill(os.getpid(), signal.SIGKILL)

        folder = Path({str(tmp_path)!r})
        plans = {{folder / f"{{recipe}}.gguf": plan(header(NARROW), recipe) for recipe in ("Q8_0", "F16")}}
        write(plans, MemorySource(random_weights(NARROW)), threads=2, on_tensor=die)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=Path(__file__).parents[3], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path) == ["F16.gguf.partial", "Q8_0.gguf.partial"]
    # The next run takes their place.
    write_file(tmp_path / "F16.gguf", SMALL, "F16", random_weights(SMALL))
    assert names(tmp_path) == ["F16.gguf", "Q8_0.gguf.partial"]
