"""Folders of GPTQ and AWQ, packed by slow twins as other tools pack them, read as weights; broken ones refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hermetiq.calibration import walk
from hermetiq.chat.inspect import inspect
from hermetiq.checkpoint import open_checkpoint
from hermetiq.checkpoint.folder import FolderCheckpoint
from hermetiq.errors import Refusal
from hermetiq.formats import awq, gptq
from hermetiq.formats.linear_plan import linears, plan
from hermetiq.formats.shards import write_shards
from hermetiq.pipeline import prepare
from hermetiq.quantize.result import QuantizedLinear
from hermetiq.quantize.spec import Spec, parse
from tests.fixtures.models import copy_of, edit_json, tiny_checkpoint
from tests.fixtures.packed import assert_weights, rewrite
from tests.formats.layers import quantized
from tests.oracles import awq_bytes, gptq_bytes

WEIGHTS = "model.safetensors"
UP, DOWN = "model.layers.1.mlp.up_proj", "model.layers.0.mlp.down_proj"
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Model:
    """A packed folder and the weights that it stands for."""

    folder: Path
    weights: Mapping[str, Tensor]


def ints(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32)


def gptq_parts(layer: QuantizedLinear, spec: Spec) -> tuple[Tensors, list[list[float]]]:
    recipe, order = spec.linear, layer.group_of.tolist()
    words = gptq_bytes.qweight(layer.codes.tolist(), recipe.bits)
    zeros = gptq_bytes.qzeros(layer.zeros.tolist(), recipe.bits, recipe.zero_offset)
    parts = {"qweight": ints(words), "qzeros": ints(zeros), "scales": layer.scales, "g_idx": layer.group_of}
    scales = layer.scales.tolist()
    return parts, gptq_bytes.dequantized(words, zeros, scales, order, recipe.bits, recipe.zero_offset)


def awq_parts(layer: QuantizedLinear, spec: Spec) -> tuple[Tensors, list[list[float]]]:
    words, zeros = awq_bytes.packed(layer.codes.T.tolist()), awq_bytes.packed(layer.zeros.tolist())
    parts = {"qweight": ints(words), "qzeros": ints(zeros), "scales": layer.scales}
    assert spec.linear.group_size
    return parts, awq_bytes.dequantized(words, zeros, layer.scales.tolist(), spec.linear.group_size)


def section(spec: Spec) -> dict[str, Any]:
    """`quantization_config` as the formats' first tools wrote it."""
    recipe = spec.linear
    common = {"bits": recipe.bits, "group_size": recipe.group_size or -1, "quant_method": spec.format}
    if spec.format == "awq":
        return common | {"version": "gemm", "zero_point": True, "modules_to_not_convert": None}
    version = {} if recipe.zero_offset else {"checkpoint_format": "gptq_v2"}
    return common | {"desc_act": recipe.order == "actorder", "sym": recipe.symmetric, "damp_percent": 0.01} | version


def packed_model(plain: Path, folder: Path, spec: Spec) -> Model:
    copy_of(plain, folder)
    tensors, weights = dict[str, Tensor](), dict[str, Tensor]()
    for seed, (name, tensor) in enumerate(load_file(plain / WEIGHTS).items()):
        if not name.endswith("_proj.weight"):
            tensors[name] = weights[name] = tensor
            continue
        layer = quantized((tensor.shape[0], tensor.shape[1]), spec.linear, seed=seed)
        parts, dequantized = {"gptq": gptq_parts, "awq": awq_parts}[spec.format](layer, spec)
        tensors |= {name.removesuffix("weight") + part: stored for part, stored in parts.items()}
        weights[name] = torch.tensor(dequantized)
    (folder / WEIGHTS).unlink()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    edit_json(folder / "config.json", quantization_config=section(spec))
    return Model(folder, weights)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(
        tmp_path_factory.mktemp("packed") / "plain", family="qwen2", tokenizer="bpe", dtype=torch.float16
    )


@pytest.fixture(scope="module")
def model(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return packed_model(plain, tmp_path_factory.mktemp("packed") / "gptq", parse("gptq:4bit-g32"))


@pytest.fixture
def broken(model: Model, tmp_path: Path) -> Path:
    """A folder to break."""
    return copy_of(model.folder, tmp_path / "broken")


@pytest.mark.parametrize(
    "spec",
    [
        *("gptq:2bit-g32", "gptq:3bit-g64-asym", "gptq:4bit-channel", "gptq:8bit-g32-asym"),
        *("gptq:4bit-g32-asym-v2", "gptq:4bit-g32-actorder", "gptq:3bit-g32-actorder-v2"),
        *("awq:4bit-g32", "awq:4bit-g64"),
    ],
)
def test_packed_layers_are_read_as_the_weights_they_stand_for(spec: str, plain: Path, tmp_path: Path) -> None:
    model = packed_model(plain, tmp_path / "packed", parse(spec))
    assert_weights(model.folder, model.weights)


@pytest.mark.parametrize("text", ["gptq:3bit-g32-asym-actorder", "awq:4bit-g32"])
def test_a_folder_of_our_own_writers_is_read_back(text: str, plain: Path, tmp_path: Path) -> None:
    spec, folder = parse(text), copy_of(plain, tmp_path / "ours")
    source = open_checkpoint(plain)
    pack, config = {
        "gptq": (gptq.pack, gptq.config(spec.linear, damp_percent=0.01)),
        "awq": (awq.pack, awq.config(spec.linear)),
    }[spec.format]
    layers = {module: quantized(shape, spec.linear) for module, shape in linears(source.model).items()}
    packed = {
        f"{module}.{part}": tensor
        for module, layer in layers.items()
        for part, tensor in pack(layer, spec.linear).items()
    }
    (folder / WEIGHTS).unlink()
    tensors = plan(source.model, spec).tensors
    write_shards(folder, tensors, lambda name: packed[name] if name in packed else source.load(name), max_bytes=50_000)
    edit_json(folder / "config.json", quantization_config=config)
    weights = {name: source.load(name) for name in source.tensors if not name.endswith("_proj.weight")}
    assert_weights(folder, weights | {f"{module}.weight": layer.dequantize() for module, layer in layers.items()})


def test_the_walk_reads_it_like_the_float_model_it_stands_for(model: Model) -> None:
    checkpoint = open_checkpoint(model.folder)
    rows = [[1, 2, 3, 4], [5, 6]]
    found = walk.final_hidden(checkpoint.config, checkpoint.load, rows)
    plain_config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    expected = walk.final_hidden(plain_config, model.weights.__getitem__, rows)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_groups_lie_side_by_side_where_no_order_is_stored(model: Model, broken: Path) -> None:
    rewrite(broken, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.endswith("g_idx")])
    assert_weights(broken, model.weights)


def test_a_bias_of_zeros_is_none_and_any_other_is_left_over(model: Model, broken: Path) -> None:
    rewrite(broken, lambda tensors: tensors.update({f"{DOWN}.bias": torch.zeros(64).half()}))
    assert_weights(broken, model.weights)
    rewrite(broken, lambda tensors: tensors.update({f"{DOWN}.bias": torch.ones(64).half()}))
    with pytest.raises(Refusal, match=rf"left over: {DOWN}\.bias"):
        open_checkpoint(broken)


def test_scales_of_other_float_types_are_read(model: Model, broken: Path) -> None:
    rewrite(broken, lambda tensors: tensors.update({f"{UP}.scales": tensors[f"{UP}.scales"].float()}))
    assert_weights(broken, model.weights)


def test_a_layer_that_was_left_out_passes_through(model: Model, broken: Path) -> None:
    weight = torch.ones(128, 64).half()

    def leave_out(tensors: Tensors) -> None:
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            del tensors[f"{UP}.{part}"]
        tensors[f"{UP}.weight"] = weight

    rewrite(broken, leave_out)
    assert_weights(broken, {**model.weights, f"{UP}.weight": weight})


def test_it_is_no_source_to_export_from(model: Model) -> None:
    checkpoint = open_checkpoint(model.folder)
    assert {(item.rule, item.severity) for item in checkpoint.findings} == {("source-quantized", "error")}
    assert {item.rule for item in inspect(str(model.folder), weights=False).findings} == {"source-quantized"}
    with pytest.raises(Refusal, match="source-quantized"):
        prepare(model.folder, [parse("gguf:Q8_0")])


def test_the_fingerprint_follows_the_packed_tensors(model: Model, broken: Path) -> None:
    first = open_checkpoint(model.folder).fingerprint()
    assert open_checkpoint(broken).fingerprint() == first
    rewrite(broken, lambda tensors: tensors[f"{UP}.qweight"].add_(1))
    assert open_checkpoint(broken).fingerprint() != first


def test_an_unknown_name_is_a_key_error(model: Model) -> None:
    checkpoint = open_checkpoint(model.folder)
    for name in (f"{UP}.qweight", "nothing"):
        with pytest.raises(KeyError):
            checkpoint.load(name)


@pytest.mark.parametrize(
    ("part", "tensor", "found"),
    [
        ("qweight", torch.zeros((8, 128)), "float32"),
        ("qweight", torch.zeros((8, 128), dtype=torch.uint8), "U8"),
        ("qzeros", torch.zeros((2, 15), dtype=torch.int32), r"\(2, 15\)"),
        ("scales", torch.ones((2, 127)).half(), r"\(2, 127\)"),
        ("g_idx", torch.zeros(63, dtype=torch.int32), r"\(63,\)"),
        ("scales", None, "no such tensor"),
        ("qzeros", None, "no such tensor"),
    ],
)
def test_parts_of_wrong_shape_or_type_are_refused_on_opening(
    part: str, tensor: Tensor | None, found: str, broken: Path
) -> None:
    rewrite(broken, lambda t: t.pop(f"{UP}.{part}") if tensor is None else t.update({f"{UP}.{part}": tensor}))
    with pytest.raises(Refusal, match=rf"{WEIGHTS}: {UP}\.{part}: source-incomplete: found .*{found}"):
        open_checkpoint(broken)


@pytest.mark.parametrize(
    ("part", "change", "found"),
    [
        ("scales", lambda t: t.fill_(torch.nan), "256 of 256 zero, NaN or infinite"),
        ("scales", lambda t: t[1].zero_(), "128 of 256 zero"),
        ("g_idx", lambda t: t.fill_(2), "groups 2 to 2"),
        ("g_idx", lambda t: t.neg_(), "groups -1 to 0"),
        ("qzeros", lambda t: t.fill_(-1), "256 stored zero-points of 15"),
    ],
)
def test_values_that_make_no_weight_are_refused_when_they_are_read(
    part: str, change: Callable[[Tensor], object], found: str, broken: Path
) -> None:
    rewrite(broken, lambda tensors: change(tensors[f"{UP}.{part}"]))
    checkpoint = open_checkpoint(broken)
    with pytest.raises(Refusal, match=rf"{UP}\.{part}: source-incomplete: found {found}"):
        checkpoint.load(f"{UP}.weight")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"bits": 5}, "bits.*found 5, expected 2 or 3 or 4 or 8"),
        ({"bits": "4"}, "bits.*found '4'"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format.*'marlin', expected gptq or gptq_v2"),
        ({"checkpoint_format": ["gptq"]}, "checkpoint_format"),
        ({"group_size": 0}, "group_size.*found 0"),
        ({"group_size": None}, "group_size.*found None"),
        ({"dynamic": {"-:lm_head": {}}}, "dynamic"),
        ({"is_marlin_format": True}, "is_marlin_format"),
        ({"pack_dtype": "int8"}, "pack_dtype"),
        ({"quant_method": "awq", "version": "gemv"}, "version.*'gemv', expected gemm"),
        ({"quant_method": "awq", "bits": 3}, "bits.*found 3, expected 4"),
        ({"quant_method": "awq", "zero_point": False}, "zero_point.*found False"),
        ({"bits": 2}, r"qzeros: .*found shape \(4, 8\), expected shape \(4, 4\)"),
    ],
)
def test_a_layout_that_is_not_read_here_is_refused_by_its_field(
    change: dict[str, Any], found: str, broken: Path
) -> None:
    stated = json.loads((broken / "config.json").read_text())["quantization_config"]
    edit_json(broken / "config.json", quantization_config=stated | change)
    with pytest.raises(Refusal, match=found):
        open_checkpoint(broken)


def test_a_weight_beside_its_packed_form_is_refused(broken: Path) -> None:
    rewrite(broken, lambda tensors: tensors.update({f"{UP}.weight": torch.ones(128, 64)}))
    with pytest.raises(Refusal, match=rf"beside a packed layer: {UP}\.weight"):
        open_checkpoint(broken)


def test_integers_outside_packed_layers_are_refused(broken: Path) -> None:
    rewrite(broken, lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.int32)}))
    with pytest.raises(Refusal, match=r"types of another layout: model\.norm\.weight \(I32\)"):
        open_checkpoint(broken)


def test_a_shape_that_the_configuration_denies_is_refused(broken: Path) -> None:
    edit_json(broken / "config.json", intermediate_size=256)
    with pytest.raises(Refusal, match=r"other shapes: .*\(128, 64\) for \(256, 64\)"):
        open_checkpoint(broken)


def test_a_configuration_that_packed_nothing_is_refused(plain: Path, tmp_path: Path) -> None:
    folder = copy_of(plain, tmp_path / "copy")
    edit_json(folder / "config.json", quantization_config=section(parse("awq:4bit-g32")))
    with pytest.raises(Refusal, match="found no packed layer"):
        open_checkpoint(folder)


def test_a_missing_file_is_found_as_in_any_folder(broken: Path) -> None:
    (broken / WEIGHTS).unlink()
    with pytest.raises(Refusal, match="no weights"):
        open_checkpoint(broken)


def test_other_quantizers_are_refused_as_before(broken: Path, plain: Path) -> None:
    edit_json(broken / "config.json", quantization_config={"quant_method": "bitsandbytes", "bits": 4})
    with pytest.raises(Refusal, match="source-quantized"):
        open_checkpoint(broken)
    assert isinstance(open_checkpoint(plain), FolderCheckpoint)
