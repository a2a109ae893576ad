"""Plans of GPTQ and AWQ folders: what will be written, what it costs, how it splits, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hermetiq.errors import Refusal
from hermetiq.formats import awq, gptq
from hermetiq.formats.linear_plan import linears, plan
from hermetiq.quantize.spec import parse
from tests.formats.gguf.small import CONFIG
from tests.formats.layers import quantized

MODEL = replace(CONFIG, hidden=256, intermediate=512, heads=8, kv_heads=4, head_dim=32, layers=2, tied=False)
SMOL = replace(
    CONFIG, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64, layers=30, rows=49152, tied=True
)
"""The shape of SmolLM2-135M."""


def test_every_tensor_is_planned_in_the_checkpoints_order() -> None:
    model = replace(MODEL, layers=1, attention_bias=True, tied=True)
    found = {tensor.name: (tensor.shape, tensor.dtype) for tensor in plan(model, parse("gptq:4bit-g64")).tensors}
    q = "model.layers.0.self_attn.q_proj."
    assert list(found)[:8] == [
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        *(q + part for part in ("qweight", "qzeros", "scales", "g_idx", "bias")),
        "model.layers.0.self_attn.k_proj.qweight",
    ]
    assert found[q + "qweight"] == ((32, 256), torch.int32)
    assert found[q + "qzeros"] == ((4, 32), torch.int32)
    assert found[q + "scales"] == ((4, 256), torch.float16)
    assert found[q + "g_idx"] == ((256,), torch.int32)
    assert found[q + "bias"] == ((256,), torch.float16)
    # auto-gptq needs the head although it is tied.
    assert found["lm_head.weight"] == found["model.embed_tokens.weight"] == ((model.rows, 256), torch.float16)
    assert not any(name.endswith("_proj.weight") for name in found)


def test_awq_has_no_order_of_groups_and_leaves_a_tied_head_out() -> None:
    found = {tensor.name: tensor.shape for tensor in plan(replace(MODEL, tied=True), parse("awq:4bit-g64")).tensors}
    down = "model.layers.1.mlp.down_proj."
    assert [found[down + part] for part in ("qweight", "qzeros", "scales")] == [(512, 32), (8, 32), (8, 256)]
    assert down + "g_idx" not in found
    assert "lm_head.weight" not in found


def test_what_is_not_quantized_may_have_another_type() -> None:
    tensors = plan(MODEL, parse("gptq:4bit-g64"), dtype=torch.bfloat16).tensors
    assert {tensor.dtype for tensor in tensors if tensor.name.endswith(".weight")} == {torch.bfloat16}
    assert {tensor.dtype for tensor in tensors if tensor.name.endswith(".scales")} == {torch.float16}


def test_bytes_and_bits_per_weight_are_those_of_the_tensors() -> None:
    planned = plan(MODEL, parse("gptq:4bit-g64"))
    layers = 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 512 * 256)
    # Each weight half a byte; each group of 64 a scale of two bytes and half a zero-point; four bytes a column.
    columns = 2 * (6 * 256 + 512)
    packed = layers // 2 + layers // 64 * 5 // 2 + 4 * columns
    others = 2 * (2 * MODEL.rows * 256 + 5 * 256)
    assert planned.bytes == packed + others
    assert planned.bits_per_weight == 8 * planned.bytes / MODEL.weights
    assert planned.nominal_bits_per_weight == 8 * packed / layers


def test_smollm2_fits_groups_of_64_and_cannot_be_split() -> None:
    planned = plan(SMOL, parse("gptq:4bit-g64"))
    assert planned.nominal_bits_per_weight == pytest.approx(4.3125, abs=0.1)
    assert len(linears(SMOL)) == 210
    assert planned.unsplit[1] == ()
    assert planned.unsplit[2] == ("q_proj", "k_proj", "v_proj", "o_proj")


def test_a_group_size_that_no_row_divides_is_refused_with_those_that_fit() -> None:
    with pytest.raises(Refusal) as refusal:
        plan(SMOL, parse("gptq:4bit-g128"))
    kinds = [each.field.rpartition(".")[2] for each in refusal.value.findings]
    assert kinds == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]
    first = refusal.value.findings[0]
    assert (first.rule, first.field) == ("group-shape", "model.layers.0.self_attn.q_proj")
    assert (first.found, first.expected) == ("rows of 576", "a multiple of the group size, 128")
    assert first.repair == "All layers of this model fit g32, g64."


@pytest.mark.parametrize(
    ("spec", "change", "field"),
    [
        ("gptq:3bit-channel", {"intermediate": 528}, "mlp.gate_proj"),
        ("gptq:4bit-g32", {"head_dim": 20}, "self_attn.k_proj"),
        ("awq:4bit-g32", {"kv_heads": 1, "head_dim": 4, "heads": 8}, "self_attn.k_proj"),
    ],
)
def test_codes_that_do_not_fill_words_are_refused(spec: str, change: dict[str, int], field: str) -> None:
    with pytest.raises(Refusal) as refusal:
        plan(replace(MODEL, **change), parse(spec))
    found = next(each for each in refusal.value.findings if "fill whole words" in each.expected)
    assert found.field == f"model.layers.0.{field}"
    assert "use a GGUF" in found.repair


@pytest.mark.parametrize(
    ("spec", "change", "unsplit"),
    [
        # Four key heads serve eight GPUs as copies; a share of o's 256 columns is 32 on eight.
        ("gptq:4bit-g32", {}, {2: (), 4: (), 8: ()}),
        ("gptq:4bit-g64", {}, {2: (), 4: (), 8: ("o_proj",)}),
        ("gptq:4bit-g128", {}, {2: (), 4: ("o_proj",), 8: ("o_proj", "down_proj")}),
        ("gptq:4bit-channel", {}, {2: (), 4: (), 8: ()}),
        ("awq:4bit-g32", {}, {2: (), 4: (), 8: ()}),
        ("gptq:4bit-g32-actorder", {}, dict.fromkeys((2, 4, 8), ("o_proj", "down_proj"))),
        ("gptq:4bit-g32", {"kv_heads": 3, "heads": 9}, {2: ("q_proj", "k_proj", "v_proj", "o_proj")}),
        ("gptq:3bit-channel", {"intermediate": 288}, {2: ("gate_proj", "up_proj", "down_proj")}),
    ],
)
def test_the_tensor_parallel_matrix(spec: str, change: dict[str, int], unsplit: dict[int, tuple[str, ...]]) -> None:
    found = plan(replace(MODEL, **change), parse(spec)).unsplit
    assert list(found) == [1, 2, 4, 8]
    assert found[1] == ()
    assert {gpus: found[gpus] for gpus in unsplit} == unsplit


def test_the_planned_parts_are_what_the_packers_make() -> None:
    for text, pack in (("gptq:3bit-channel-asym", gptq.pack), ("awq:4bit-g64", awq.pack)):
        spec = parse(text)
        planned = {tensor.name: (tensor.shape, tensor.dtype) for tensor in plan(MODEL, spec).tensors}
        for module, shape in linears(MODEL).items():
            for part, tensor in pack(quantized(shape, spec.linear), spec.linear).items():
                assert planned.pop(f"{module}.{part}") == (tuple(tensor.shape), tensor.dtype)
        assert all(name.endswith(".weight") for name in planned)
