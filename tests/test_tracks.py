"""One pass of calibration, and what GPTQ, AWQ and the importance matrix each take from it."""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hermetiq import harvest, tracks
from hermetiq.calibration.walk import final_hidden
from hermetiq.chat.contract import derive
from hermetiq.checkpoint import open_checkpoint
from hermetiq.errors import CheckFailed, HermetiqError, Refusal
from hermetiq.formats import gptq
from hermetiq.formats.gguf.names import gguf_names
from hermetiq.formats.gguf.recipe import FILE_TYPE
from hermetiq.journal import Journal
from hermetiq.manifest import STAGES, Manifest, sha256_of
from hermetiq.pipeline import export, prepare
from hermetiq.plan import Job
from hermetiq.quantize.spec import parse
from tests.fixtures.forks import content
from tests.fixtures.models import copy_of, tiny_checkpoint
from tests.oracles import gguf_llama_cpp

ROWS: Mapping[str, Any] = {"rows": 4, "row_tokens": 48}
SPECS = ("gptq:4bit-g32", "awq:4bit-g32", "gguf:Q4_K_M")
GPTQ, AWQ, GGUF = "gptq-4bit-g32", "awq-4bit-g32", "gguf/model-Q4_K_M.gguf"


def asked(model: Path, *specs: str, **options: Any) -> Job:
    return prepare(model, [parse(spec) for spec in specs], **{**ROWS, **options})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 256, so that K-quants show; float32, so that a merge can be stored without rounding."""
    folder = tmp_path_factory.mktemp("tracks") / "model"
    sizes: Mapping[str, Any] = {"hidden": 256, "intermediate": 256, "dtype": torch.float32}
    return tiny_checkpoint(folder, family="llama", tokenizer="bpe", **sizes)


@pytest.fixture(scope="module")
def job(model: Path) -> Job:
    return asked(model, *SPECS)


@pytest.fixture(scope="module")
def out(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three formats from one pass."""
    folder = tmp_path_factory.mktemp("tracks") / "out"
    export(job, folder)
    return folder


def edited(model: Path, target: Path, edits: Mapping[str, Tensor]) -> Path:
    """A copy of a one-shard checkpoint with tensors put in the place of its own."""
    copy_of(model, target)
    weights = load_file(target / "model.safetensors") | edits
    (target / "model.safetensors").unlink()
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_the_manifest_pins_every_file_and_the_rows(job: Job, out: Path) -> None:
    manifest = Manifest.read(out)
    assert [(item.spec, item.file) for item in manifest.artifacts] == list(zip(SPECS, (GPTQ, AWQ, GGUF), strict=True))
    files = {name: digest for item in manifest.artifacts for name, digest in item.files.items()}
    assert files == {
        path.relative_to(out).as_posix(): sha256_of(path)
        for path in out.rglob("*")
        if path.is_file() and path.name not in ("hermetiq.json", STAGES)
    }
    for item in manifest.artifacts:
        assert item.bytes == sum((out / name).stat().st_size for name in item.files)
    assert [item.imatrix for item in manifest.artifacts] == [False, False, True]
    pinned = manifest.calibration
    assert pinned is not None
    assert job.rows is not None
    assert (pinned.corpus, pinned.seed, pinned.sha256) == ("built-in", 0, job.rows.sha256)
    assert (pinned.rows_asked, pinned.rows_used) == (4, 4)
    assert pinned.tokens == sum(map(len, job.rows.rows)) <= 4 * 48


def test_the_plan_has_the_real_numbers(job: Job, out: Path) -> None:
    plan = job.plan
    for planned, path in zip(plan.files[:2], (GPTQ, AWQ), strict=True):
        tensors = load_file(out / path / "model.safetensors")
        assert planned.name == path
        assert planned.bytes == sum(tensor.nbytes for tensor in tensors.values())
        kinds = Counter(str(tensor.dtype) for name, tensor in tensors.items() if name.endswith(("qweight", ".weight")))
        assert planned.types == {"4-bit": kinds["torch.int32"], "F16": kinds["torch.float16"]}
        weights = sum(np.prod(shape) for shape in job.source.model.expected_tensors().values())
        assert planned.bpw == pytest.approx(8 * planned.bytes / weights)
    assert plan.files[2].bytes == (out / GGUF).stat().st_size
    assert plan.disk >= sum(path.stat().st_size for path in out.rglob("*.safetensors")) + plan.files[2].bytes
    assert plan.calibration is not None
    assert plan.calibration["rows_used"] == 4
    assert plan.memory > asked(job.source.path, "gguf:Q4_K_M").plan.memory
    json.dumps(plan.to_json())


def test_folders_are_the_same_chat_model_with_nearly_the_same_answers(job: Job, out: Path) -> None:
    assert job.rows
    expected = torch.cat(final_hidden(job.source.config, job.source.load, job.rows.rows))
    for path in (GPTQ, AWQ):
        stored = open_checkpoint(out / path)
        assert replace(derive(stored), eos_sources=()) == replace(job.contract, eos_sources=())
        found = torch.cat(final_hidden(stored.config, stored.load, job.rows.rows))
        assert 0.001 < float((found - expected).norm() / expected.norm()) < 0.15


def test_the_same_bytes_alone_or_together_once_or_twice(model: Path, job: Job, out: Path, tmp_path: Path) -> None:
    export(job, tmp_path / "again")
    assert content(tmp_path / "again") == content(out)
    for spec, path in zip(SPECS[:2], (GPTQ, AWQ), strict=True):
        export(asked(model, spec), tmp_path / path)
        assert content(tmp_path / path / path) == content(out / path)
    export(asked(model, SPECS[2], imatrix=True), tmp_path / "gguf")
    assert (tmp_path / "gguf" / GGUF).read_bytes() == (out / GGUF).read_bytes()


def test_no_work_folder_is_left(out: Path) -> None:
    assert sorted(path.name for path in out.iterdir()) == [AWQ, "gguf", GPTQ, STAGES, "hermetiq.json"]


def inputs_of(model: Path, rows: list[list[int]]) -> dict[str, Tensor]:
    """The oracle: mean square of each input column by the name of the weight, in float64, by transformers.

    The first token of a row counts several times in the sum, and once among the tokens.
    """
    whole = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    squares: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def add(_: nn.Module, arguments: tuple[Tensor, ...], __: Tensor) -> None:
            squared = arguments[0][0].double().square()
            squares[name] = squares.get(name, 0) + squared.sum(0) + (tracks.FIRST_TOKEN_WEIGHT - 1) * squared[0]

        return add

    for name, module in whole.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(hook(f"{name}.weight"))
    with torch.inference_mode():
        for row in rows:
            whole(torch.tensor([list(row)]))
    return {name: total / sum(map(len, rows)) for name, total in squares.items()}


@pytest.fixture
def importance(monkeypatch: pytest.MonkeyPatch) -> dict[str, NDArray[np.float32]]:
    """What the next export gives to the GGUF writer."""
    kept: dict[str, NDArray[np.float32]] = {}
    real = harvest.importance

    def spy(*arguments: Any, **options: Any) -> dict[str, Tensor]:
        made = real(*arguments, **options)
        kept.update({name: tensor.numpy().copy() for name, tensor in made.items()})
        return made

    monkeypatch.setattr(harvest, "importance", spy)
    return kept


@pytest.mark.parametrize("tied", [False, True])
def test_the_importance_matrix_is_the_mean_square_and_is_used_as_llama_cpp_does(
    tied: bool, importance: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    sizes: Mapping[str, Any] = {"hidden": 256, "intermediate": 256}
    model = tiny_checkpoint(tmp_path / "model", family="llama", tokenizer="bpe", tied=tied, **sizes)
    job = asked(model, "gguf:Q4_K_M", "gguf:F32", imatrix=True)
    export(job, tmp_path / "out")
    assert job.rows
    oracle = inputs_of(model, [list(row) for row in job.rows.rows])
    if tied:
        oracle["model.embed_tokens.weight"] = oracle.pop("lm_head.weight")
    assert importance.keys() == oracle.keys()
    for name, expected in oracle.items():
        # Products may be rounded to bfloat16 on the way.
        np.testing.assert_allclose(importance[name], expected.numpy(), rtol=0.05, err_msg=name)
    names = gguf_names(job.source.model)
    asked_of_them = {names[name]: values for name, values in importance.items()}
    plain = tmp_path / "out/gguf/model-F32.gguf"
    gguf_llama_cpp.quantize(plain, tmp_path / "theirs.gguf", FILE_TYPE["Q4_K_M"], imatrix=asked_of_them)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "theirs.gguf").tensors}
    for tensor in gguf.GGUFReader(tmp_path / "out" / GGUF).tensors:
        assert tensor.tensor_type == theirs[tensor.name].tensor_type
        np.testing.assert_array_equal(tensor.data, theirs[tensor.name].data, err_msg=tensor.name)


def test_an_importance_matrix_is_made_where_it_is_free_or_asked_for(model: Path, out: Path, tmp_path: Path) -> None:
    alone = asked(model, SPECS[2])
    assert (alone.rows, alone.importance) == (None, False)
    assert asked(model, *SPECS).importance
    without = asked(model, *SPECS[1:], imatrix=False)
    manifest = export(without, tmp_path / "without")
    assert not manifest.artifacts[1].imatrix
    assert (tmp_path / "without" / GGUF).read_bytes() != (out / GGUF).read_bytes()
    assert export(alone, tmp_path / "alone").artifacts[0].sha256 == manifest.artifacts[1].sha256


@pytest.mark.parametrize(
    ("others", "imatrix", "expected"),
    [((), None, "Q4_0"), ((), True, "Q4_1"), (("awq:4bit-g32",), None, "Q4_1"), (("awq:4bit-g32",), False, "Q4_0")],
)
def test_types_are_chosen_for_the_matrix_that_there_will_be(
    others: tuple[str, ...], imatrix: bool | None, expected: str, tmp_path: Path
) -> None:
    """As llama.cpp does for `ffn_down` in the first eighth of the layers."""
    deep = tiny_checkpoint(tmp_path / "model", family="llama", tokenizer="bpe", layers=8)
    (planned,) = asked(deep, "gguf:Q4_0", *others, imatrix=imatrix).gguf.values()
    types = {tensor.name: tensor.choice.type.name for tensor in planned.tensors}
    assert [types[f"blk.{layer}.ffn_down.weight"] for layer in (0, 1)] == [expected, "Q4_0"]


def test_columns_that_were_never_active_count_a_little(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "work", {}, resume=False)
    journal.write(0, {tracks.IMPORTANCE: {"a": torch.tensor([0.0, 4.0]), "b": torch.zeros(3)}}, {})
    found = harvest.importance(journal, tied=False)
    assert found["a"].tolist() == [pytest.approx(2e-6), 4]
    assert torch.equal(found["b"], torch.ones(3))


def test_steps_of_the_solver_are_counted_and_named(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "work", {}, resume=False)
    steps = ("model.layers.0.mlp.down_proj: damping 0.1", "model.layers.0.self_attn.o_proj: round to nearest")
    for index, taken in enumerate((steps, ("model.layers.1.mlp.down_proj: damping 0.1",), ())):
        journal.write(index, {}, {"peaks": {}, "steps": {"gptq-4bit-g32": taken, "awq-4bit-g32": []}})
    found = harvest.solving(journal, "gptq-4bit-g32")
    assert found.counts == {"damping 0.1": 2, "round to nearest": 1}
    assert found.steps == (*steps, "model.layers.1.mlp.down_proj: damping 0.1")
    assert harvest.solving(journal, "awq-4bit-g32").counts == {}


def test_a_tied_head_is_stored_for_gptq_alone(tmp_path: Path) -> None:
    """auto-gptq fills a head that is not there with random numbers."""
    model = tiny_checkpoint(tmp_path / "model", family="llama", tokenizer="bpe", tied=True)
    export(asked(model, *SPECS[:2]), tmp_path / "out")
    stored = {path: load_file(tmp_path / "out" / path / "model.safetensors") for path in (GPTQ, AWQ)}
    assert torch.equal(stored[GPTQ]["lm_head.weight"], stored[GPTQ]["model.embed_tokens.weight"])
    assert "lm_head.weight" not in stored[AWQ]


def test_a_gguf_file_is_a_source(model: Path, out: Path, tmp_path: Path) -> None:
    export(asked(model, "gguf:F32"), tmp_path / "plain")
    export(asked(tmp_path / "plain/gguf/model-F32.gguf", SPECS[0]), tmp_path / "out")
    mine, direct = (load_file(folder / GPTQ / "model.safetensors") for folder in (tmp_path / "out", out))
    assert mine.keys() == direct.keys()
    assert all(torch.equal(tensor, direct[name]) for name, tensor in mine.items())


def test_an_adapter_is_merged_before_anything_is_measured(model: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(model)
    with warnings.catch_warnings():
        # peft calls what this transformers deprecates.
        warnings.simplefilter("ignore")
        adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj", "down_proj"], r=4))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path / "lora")
    job = asked(model, *SPECS[:2], adapter=str(tmp_path / "lora"))
    merged = edited(model, tmp_path / "model", {name: job.source.load(name) for name in job.source.tensors})
    export(job, tmp_path / "adapted")
    export(asked(merged, *SPECS[:2]), tmp_path / "merged")
    for path in (GPTQ, AWQ):
        mine, theirs = (tmp_path / kind / path / "model.safetensors" for kind in ("adapted", "merged"))
        assert mine.read_bytes() == theirs.read_bytes()


def test_sequential_calibration_sees_quantized_blocks(model: Path, out: Path, tmp_path: Path) -> None:
    export(asked(model, SPECS[0], sequential=True), tmp_path / "out")
    mine, plain = (load_file(folder / GPTQ / "model.safetensors") for folder in (tmp_path / "out", out))
    changed = {name for name, tensor in mine.items() if not torch.equal(tensor, plain[name])}
    assert changed
    assert all(name.startswith("model.layers.1.") for name in changed)
    with pytest.raises(HermetiqError, match=r"follows one GPTQ or AWQ artifact"):
        asked(model, *SPECS, sequential=True)


@pytest.mark.parametrize("block", [0, 1])
def test_a_weight_that_is_no_number_is_named(model: Path, tmp_path: Path, block: int) -> None:
    name = f"model.layers.{block}.mlp.up_proj.weight"
    broken = edited(model, tmp_path / "model", {name: torch.full((256, 256), torch.nan)})
    with pytest.raises(Refusal, match="weight-nan") as refused:
        export(asked(broken, *SPECS), tmp_path / "out")
    assert refused.value.findings[0].field == name
    assert not any((tmp_path / "out" / path).exists() for path in (GPTQ, AWQ, GGUF, "hermetiq.json"))
    # With nothing to resume nothing is left.
    assert (tmp_path / "out").exists() == bool(block)


def test_activations_that_overflow_are_named(model: Path, tmp_path: Path) -> None:
    broken = edited(model, tmp_path / "model", {"model.layers.1.mlp.up_proj.weight": torch.full((256, 256), 3e38)})
    with pytest.raises(Refusal, match=r"model\.layers\.1\.mlp\.up_proj: hessian-nan"):
        export(asked(broken, "gguf:BF16", imatrix=True), tmp_path / "out")


@pytest.mark.parametrize("value", [7e4, -1e30, 1e-9])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
@pytest.mark.parametrize("spec", [*SPECS[:2], "exl2:3.5bpw"])
def test_what_float16_cannot_hold_is_refused_by_its_tensors_name(
    model: Path, tmp_path: Path, name: str, value: float, spec: str
) -> None:
    own = load_file(model / "model.safetensors")[name]
    row = own[0] if own.dim() > 1 else own
    row[: 1 if abs(value) > 1 else None] = value
    broken = edited(model, tmp_path / "model", {name: own})
    with pytest.raises(Refusal, match="f16-overflow") as refused:
        export(asked(broken, spec), tmp_path / "out")
    (found,) = refused.value.findings
    assert (found.field, found.severity) == (name, "error")


def test_bfloat16_holds_what_float16_cannot(model: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    own = load_file(model / "model.safetensors")[name]
    broken = edited(model, tmp_path / "model", {name: own * 1e9})
    export(asked(broken, "gguf:BF16", "gguf:F32"), tmp_path / "out")
    for spec in ("gguf:F16", "gguf:Q4_0"):
        with pytest.raises(Refusal, match=rf"{name}: f16-overflow"):
            export(asked(broken, spec), tmp_path / "other")


def test_activations_beyond_float16_are_a_warning_on_record(model: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.v_proj"
    own = load_file(model / "model.safetensors")[f"{name}.weight"]
    loud = edited(model, tmp_path / "model", {f"{name}.weight": own * 5e5})
    manifest = export(asked(loud, SPECS[0]), tmp_path / "out")
    assert [(item.rule, item.field) for item in manifest.source.findings if item.rule == "fp16-range"] == [
        ("fp16-range", name)
    ]


def test_a_group_that_does_not_fit_is_refused_before_work(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", family="llama", tokenizer="bpe")
    with pytest.raises(Refusal, match=r"group-shape") as refused:
        asked(model, "gguf:Q8_0", "gptq:4bit-g128")
    assert "g32, g64" in "".join(f"{item.expected} {item.repair} {item.found}" for item in refused.value.findings)


def test_overwriting_leaves_nothing_of_the_earlier_export(model: Path, out: Path, tmp_path: Path) -> None:
    earlier = shutil.copytree(out, tmp_path / "out")
    (earlier / GPTQ / "config.json").unlink()
    job = asked(model, SPECS[1], "gguf:Q8_0")
    (earlier / GPTQ / "mine.txt").write_text("x")
    with pytest.raises(HermetiqError, match=r"mine\.txt was not made by hermetiq"):
        export(job, earlier, overwrite=True)
    (earlier / GPTQ / "mine.txt").unlink()
    export(job, earlier, overwrite=True)
    export(job, tmp_path / "fresh")
    assert content(earlier) == content(tmp_path / "fresh")


@pytest.mark.parametrize("place", [GPTQ, ".hermetiq"])
def test_nothing_is_written_through_a_link(model: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / place).symlink_to(tmp_path / "elsewhere")
    for options in ({}, {"overwrite": True}, {"resume": True}, {"resume": True, "overwrite": True}):
        with pytest.raises(HermetiqError, match=r"not empty|was not made by hermetiq"):
            export(asked(model, SPECS[0]), tmp_path / "out", **options)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_quantized_folder_is_no_source(out: Path) -> None:
    for path in (GPTQ, AWQ):
        with pytest.raises(Refusal, match="source-quantized"):
            asked(out / path, SPECS[0])


def test_zero_points_stored_in_the_other_version_are_caught_before_they_are_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(parse("gptq:4bit-g32").linear, zero_offset=0)
    monkeypatch.setitem(tracks._PACK, "gptq", lambda linear, recipe: gptq.pack(linear, other))
    with pytest.raises(CheckFailed, match="zero-points read back as others"):
        export(asked(model, "gptq:4bit-g32"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
