"""Types and tensor data against the real `llama_model_quantize`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgmlType

from hermetiq.errors import HermetiqError
from hermetiq.formats.gguf import plan
from hermetiq.formats.gguf.recipe import FILE_TYPE, choose
from hermetiq.model import ModelConfig
from hermetiq.quantize import ggml
from hermetiq.quantize.spec import GGUF_RECIPES
from tests.formats.gguf.small import CONFIG, NARROW, header, random_weights, write_file
from tests.oracles import gguf_llama_cpp

MISTRAL_7B = replace(
    CONFIG, family="mistral", layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128
)
SHAPES: dict[str, ModelConfig] = {
    "mistral-7b": MISTRAL_7B,
    "llama-7b, no sharing": replace(MISTRAL_7B, family="llama", kv_heads=32, intermediate=11008),
    "llama-70b": replace(MISTRAL_7B, family="llama", layers=80, hidden=8192, intermediate=28672, heads=64),
    "llama-65b": replace(MISTRAL_7B, family="llama", layers=80, hidden=8192, intermediate=22016, heads=64, kv_heads=64),
    "qwen2-0.5b": replace(
        CONFIG,
        family="qwen2",
        layers=24,
        hidden=896,
        intermediate=4864,
        heads=14,
        head_dim=64,
        tied=True,
        attention_bias=True,
    ),
    "qwen2-72b": replace(
        MISTRAL_7B, family="qwen2", layers=80, hidden=8192, intermediate=29568, heads=64, attention_bias=True
    ),
    "qwen3-4b": replace(MISTRAL_7B, family="qwen3", layers=36, hidden=2560, intermediate=9728, tied=True, qk_norm=True),
    "smollm2-135m": replace(
        CONFIG, layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64, tied=True
    ),
    "one layer": replace(CONFIG, layers=1),
    "columns of 40 in ffn_down": replace(CONFIG, intermediate=40),
}


@pytest.fixture(scope="module")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the F32 files of real shapes lie: headers in front of holes that take no disk."""
    return tmp_path_factory.mktemp("hollow")


def hollow_file(folder: Path, config: ModelConfig, name: str) -> Path:
    path = folder / f"{name}.gguf"
    if not path.exists():
        planned = plan(header(config), "F32")
        path.write_bytes(planned.header)
        with path.open("r+b") as file:
            file.truncate(planned.size)
    return path


@pytest.mark.parametrize("imatrix", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_recipe_gives_every_tensor_llama_cpps_type(hollow: Path, name: str, imatrix: bool) -> None:
    source = hollow_file(hollow, SHAPES[name], name)
    compared = 0
    for recipe in GGUF_RECIPES:
        planned = plan(header(SHAPES[name]), recipe, imatrix=imatrix)
        ours = {tensor.name: tensor.choice.type.name.lower() for tensor in planned.tensors}
        theirs = gguf_llama_cpp.chosen_types(source, FILE_TYPE[recipe], imatrix=imatrix)
        if isinstance(theirs, str):
            assert "no tensor type fallback is defined" in theirs
            assert "f16" in ours.values(), "llama.cpp gives up where a row does not divide by 32; F16 holds it"
            continue
        assert ours == {tensor: type.lower() for tensor, type in theirs.items()}, recipe
        compared += 1
    assert compared >= 11


@pytest.fixture(scope="module", params=["wide", "narrow"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelConfig, Path]:
    """A model and its F32 file."""
    config = {"wide": CONFIG, "narrow": NARROW}[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return config, write_file(folder / "F32.gguf", config, "F32", random_weights(config))


@pytest.mark.parametrize("recipe", [recipe for recipe in GGUF_RECIPES if recipe != "F32"])
def test_tensor_data_equals_llama_model_quantize(model: tuple[ModelConfig, Path], recipe: str, tmp_path: Path) -> None:
    config, source = model
    gguf_llama_cpp.quantize(source, tmp_path / "theirs.gguf", FILE_TYPE[recipe])
    ours = write_file(tmp_path / "ours.gguf", config, recipe, random_weights(config), library=ggml.load("llama_cpp"))
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "theirs.gguf").tensors}
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(ours).tensors}
    assert found.keys() == theirs.keys()
    for name, tensor in found.items():
        assert tensor.tensor_type == theirs[name].tensor_type, name
        np.testing.assert_array_equal(tensor.data, theirs[name].data, err_msg=name)


def test_a_choice_says_what_the_shape_prevented() -> None:
    fallen = choose("Q4_K_M", NARROW, "blk.0.attn_q.weight", (96, 96))
    assert (fallen.type, fallen.nominal, fallen.fell_back) == (GgmlType.Q5_0, GgmlType.Q4_K, True)
    fitting = choose("Q4_K_M", CONFIG, "blk.0.attn_q.weight", (256, 256))
    assert (fitting.type, fitting.nominal, fitting.fell_back) == (GgmlType.Q4_K, GgmlType.Q4_K, False)


def test_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(HermetiqError, match="Q4_K_M"):
        choose("Q4_K_XL", CONFIG, "blk.0.attn_q.weight", (256, 256))
