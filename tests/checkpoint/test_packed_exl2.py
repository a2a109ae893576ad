"""EXL2 folders, packed by a slow twin and laid out as exllamav2's converter leaves them, read as weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hermetiq.chat.contract import derive
from hermetiq.chat.inspect import inspect
from hermetiq.checkpoint import Checkpoint, open_checkpoint
from hermetiq.companions import companions
from hermetiq.errors import Refusal
from hermetiq.formats import exl2, exl2_plan
from hermetiq.formats.linear_plan import linears
from hermetiq.formats.shards import write_shards
from hermetiq.model import EMBEDDING, HEAD
from hermetiq.quantize.ladder import LADDER, head_rung
from hermetiq.quantize.result import MixedLinear
from hermetiq.quantize.spec import parse
from tests.fixtures.models import copy_of, edit_json, tiny_checkpoint, write_json
from tests.fixtures.packed import assert_weights, rewrite
from tests.formats.layers import mixed
from tests.oracles import exl2_bytes

WEIGHTS = "output.safetensors"
UP = "model.layers.1.mlp.up_proj"
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Model:
    """An EXL2 folder, its stored tensors and the weights that it stands for."""

    folder: Path
    tensors: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]


def slow_parts(layer: MixedLinear) -> tuple[Tensors, Tensor]:
    """The stored parts of a layer, and its weights, padding included."""
    order, groups, scale_max = layer.order.tolist(), list(layer.groups), layer.scale_max
    words = exl2_bytes.q_weight(layer.codes.tolist(), order, groups)
    scales, pairs = exl2_bytes.q_scale(layer.indices.tolist()), exl2_bytes.q_groups(groups)
    inverse = exl2_bytes.q_invperm(order)
    parts = {
        "q_weight": torch.tensor(words, dtype=torch.int32),
        "q_scale": torch.tensor(scales, dtype=torch.int32),
        "q_scale_max": scale_max,
        "q_groups": torch.tensor(pairs, dtype=torch.int16),
        "q_invperm": torch.tensor(inverse, dtype=torch.int32),
    }
    return parts, torch.tensor(exl2_bytes.dequantized(words, scales, scale_max.tolist(), pairs, inverse))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied model of two shards with biases, its vocabulary no multiple of 32."""
    folder = tmp_path_factory.mktemp("exl2") / "plain"
    return tiny_checkpoint(folder, family="qwen2", tokenizer="bpe", tied=True, shards=2, dtype=torch.float16)


def other_weights(source: Checkpoint) -> Tensors:
    """What is not packed."""
    return {name: source.load(name) for name in source.tensors if not name.endswith("_proj.weight")}


@pytest.fixture(scope="module")
def model(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """As the converter leaves it: all that is no weight is copied, the source's index and `tie_word_embeddings` too."""
    source = open_checkpoint(plain)
    tensors, weights = other_weights(source), other_weights(source)
    shapes = {**linears(source.model), "lm_head": (source.model.rows, source.model.hidden)}
    for seed, (module, shape) in enumerate(shapes.items()):
        parts, dequantized = slow_parts(mixed(shape, LADDER[seed % len(LADDER)].groups(shape[1]), seed=seed))
        tensors |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
        weights[f"{module}.weight"] = dequantized[: shape[0]]
    folder = copy_of(plain, tmp_path_factory.mktemp("exl2") / "packed")
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    save_file(tensors, folder / WEIGHTS)
    calibration = {"rows": 115, "length": 2048, "dataset": "(default)"}
    section = {"quant_method": "exl2", "version": "0.3.2", "bits": 4.0, "head_bits": 6, "calibration": calibration}
    edit_json(folder / "config.json", quantization_config=section)
    assert (folder / "model.safetensors.index.json").exists()
    return Model(folder, tensors, weights)


@pytest.fixture
def broken(model: Model, tmp_path: Path) -> Path:
    """A folder to break."""
    return copy_of(model.folder, tmp_path / "broken")


def test_a_folder_of_the_converter_is_read_as_the_weights_it_stands_for(model: Model) -> None:
    assert_weights(model.folder, model.weights)
    assert {item.rule for item in inspect(str(model.folder), weights=False).findings} == {"source-quantized"}


def test_the_stored_head_counts_where_the_configuration_ties_it(model: Model) -> None:
    checkpoint = open_checkpoint(model.folder)
    assert checkpoint.documents["config.json"]["tie_word_embeddings"] is True
    assert checkpoint.config["tie_word_embeddings"] is checkpoint.model.tied is False
    assert checkpoint.tensors[HEAD].shape == checkpoint.tensors[EMBEDDING].shape
    assert not torch.equal(checkpoint.load(HEAD), checkpoint.load(EMBEDDING).float())


def test_weights_in_several_files_need_no_index(model: Model, broken: Path) -> None:
    (broken / WEIGHTS).unlink()
    names = list(model.tensors)
    for number, half in enumerate((names[:50], names[50:]), 1):
        save_file({name: model.tensors[name] for name in half}, broken / f"output-{number:05d}-of-00002.safetensors")
    assert_weights(broken, model.weights)
    (broken / "output-00002-of-00002.safetensors").unlink()
    with pytest.raises(Refusal, match="source-incomplete"):
        open_checkpoint(broken)


def test_a_tensor_in_two_files_is_refused(model: Model, broken: Path) -> None:
    save_file({f"{UP}.q_scale": model.tensors[f"{UP}.q_scale"]}, broken / "stale.safetensors")
    with pytest.raises(Refusal, match=rf"stale\.safetensors: .*{UP}\.q_scale, also in {WEIGHTS}"):
        open_checkpoint(broken)


def test_a_folder_without_weights_is_refused(broken: Path) -> None:
    (broken / WEIGHTS).unlink()
    with pytest.raises(Refusal, match="no weights"):
        open_checkpoint(broken)


@pytest.mark.parametrize("max_bytes", [50_000, 1 << 30])
def test_a_folder_of_our_own_writers_is_read_back(max_bytes: int, plain: Path, tmp_path: Path) -> None:
    source, folder, spec = open_checkpoint(plain), tmp_path / "ours", parse("exl2:4.0bpw")
    rungs = dict.fromkeys(linears(source.model), LADDER[7])
    planned = exl2_plan.allocated(exl2_plan.plan(source.model, spec), rungs)
    shapes = {**linears(source.model), "lm_head": (source.model.rows, source.model.hidden)}
    layers = {
        module: mixed(shape, (rungs | {"lm_head": head_rung(6)})[module].groups(shape[1]))
        for module, shape in shapes.items()
    }
    tensors = other_weights(source)
    tensors |= {f"{module}.{part}": tensor for module in layers for part, tensor in exl2.pack(layers[module]).items()}
    settings = exl2.config(spec.mixed, rows=1, length=2, dataset="built-in")
    write_shards(folder, planned.tensors, tensors.__getitem__, stem=planned.stem, max_bytes=max_bytes)
    for name, data in companions(source, derive(source), settings).items():
        (folder / name).write_bytes(data)
    assert all(path.name.startswith("output") for path in folder.glob("*.safetensors"))
    dequantized = {f"{module}.weight": layer.dequantize() for module, layer in layers.items()}
    assert_weights(folder, other_weights(source) | dequantized)
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config["quantization_config"] == settings
    assert not (folder / "quantize_config.json").exists()


def drop(part: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(f"{UP}.{part}")


def put(part: str, tensor: Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({f"{UP}.{part}": tensor})


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (drop("q_scale"), rf"{UP}\.q_scale: .*no such tensor"),
        (drop("q_invperm"), rf"{UP}\.q_invperm: .*no such tensor"),
        (drop("q_weight"), r"types of another layout"),
        (put("q_groups", torch.zeros(3, dtype=torch.int16)), rf"{UP}\.q_groups: .*shape \(3,\)"),
        (put("q_groups", torch.zeros(2)), rf"{UP}\.q_groups: .*shape|float32"),
        (put("q_scale_max", torch.zeros(1, dtype=torch.uint8)), rf"{UP}\.q_scale_max: .*found U8"),
        (put("q_weight", torch.zeros((9, 31), dtype=torch.int32)), rf"{UP}\.q_weight: .*31 columns"),
        (put("weight", torch.ones(128, 64)), rf"beside a packed layer: {UP}\.weight"),
        (put("qweight", torch.ones((8, 128), dtype=torch.int32)), rf"types of another layout: {UP}\.qweight"),
    ],
)
def test_parts_that_do_not_fit_are_refused_on_opening(
    change: Callable[[Tensors], object], found: str, broken: Path
) -> None:
    rewrite(broken, change)
    with pytest.raises(Refusal, match=rf"{WEIGHTS}: .*{found}"):
        open_checkpoint(broken)


@pytest.mark.parametrize(
    ("part", "change", "found"),
    [
        ("q_scale_max", lambda t: t.fill_(torch.inf), "NaN or infinite"),
        ("q_invperm", lambda t: t.fill_(1), "named twice"),
        ("q_groups", lambda t: t.fill_(7), "7 bits"),
        ("q_groups", lambda t: t[1:2].fill_(-1), "rows -1 to"),
    ],
)
def test_values_that_make_no_weight_are_refused_when_they_are_read(
    part: str, change: Callable[[Tensor], object], found: str, broken: Path
) -> None:
    rewrite(broken, lambda tensors: change(tensors[f"{UP}.{part}"]))
    checkpoint = open_checkpoint(broken)
    with pytest.raises(Refusal, match=rf"{WEIGHTS}: {UP}\.{part}: source-incomplete: found .*{found}"):
        checkpoint.load(f"{UP}.weight")


@pytest.mark.parametrize("rows", [800, 833])
def test_another_shape_is_not_taken_for_padding(rows: int, broken: Path) -> None:
    edit_json(broken / "config.json", vocab_size=rows)
    with pytest.raises(Refusal, match=rf"other shapes: .*lm_head\.weight \(832, 64\) for \({rows}, 64\)"):
        open_checkpoint(broken)


@pytest.mark.parametrize("section", ["exl2", {"quant_method": ["exl2"], "bits": 4}, {"quant_method": "exl2"}])
def test_a_section_that_says_too_little_is_no_exl2_folder(section: Any, broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    write_json(broken / "config.json", config | {"quantization_config": section})
    with pytest.raises(Refusal, match="source-quantized"):
        open_checkpoint(broken)
