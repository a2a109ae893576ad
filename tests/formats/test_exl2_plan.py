"""Plans of EXL2 folders: what is known before the widths are chosen holds afterwards, and what cannot be is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hermetiq.errors import Refusal
from hermetiq.formats import exl2
from hermetiq.formats.exl2_plan import MixedPlan, allocated, plan
from hermetiq.formats.linear_plan import LinearPlan, linears
from hermetiq.quantize.ladder import LADDER, Rung, head_rung, stored_bits
from hermetiq.quantize.spec import parse
from tests.formats.gguf.small import CONFIG
from tests.formats.layers import mixed

MODEL = replace(CONFIG, hidden=256, intermediate=512, heads=8, kv_heads=4, head_dim=32, layers=2, tied=False)
SPEC = parse("exl2:4.65bpw")


def chosen(rung: Rung, planned: MixedPlan | None = None) -> LinearPlan:
    planned = planned or plan(MODEL, SPEC)
    return allocated(planned, dict.fromkeys(linears(planned.model), rung))


def test_every_tensor_is_known_once_the_widths_are() -> None:
    model = replace(MODEL, layers=1, attention_bias=True, rows=1001)
    rungs = {module: LADDER[index] for index, module in enumerate(linears(model))}
    found = allocated(plan(model, SPEC), rungs)
    planned = {tensor.name: (tensor.shape, tensor.dtype) for tensor in found.tensors}
    assert list(planned)[:8] == [
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        *(f"model.layers.0.self_attn.q_proj.{part}" for part in ("q_weight", "q_scale", "q_scale_max", "q_groups")),
        *(f"model.layers.0.self_attn.q_proj.{part}" for part in ("q_invperm", "bias")),
    ]
    shapes = {**linears(model), "lm_head": (1001, 256)}
    for module, shape in shapes.items():
        layer = mixed(shape, (rungs | {"lm_head": head_rung(6)})[module].groups(shape[1]))
        for part, tensor in exl2.pack(layer).items():
            assert planned.pop(f"{module}.{part}") == (tuple(tensor.shape), tensor.dtype)
    assert all(name.endswith((".weight", ".bias")) and dtype == torch.float16 for name, (_, dtype) in planned.items())
    assert "lm_head.weight" not in planned
    assert found.stem == "output"


def test_a_tied_head_is_quantized_beside_its_embedding() -> None:
    tied = {tensor.name: tensor for tensor in chosen(LADDER[0], plan(replace(MODEL, tied=True), SPEC)).tensors}
    untied = {tensor.name: tensor for tensor in chosen(LADDER[0]).tensors}
    assert tied == untied
    assert tied["lm_head.q_weight"].shape == (256 * 6 // 32, MODEL.rows)
    assert "model.embed_tokens.weight" in tied


def test_the_head_follows_the_recipe() -> None:
    found = chosen(LADDER[0], plan(MODEL, parse("exl2:3.0bpw-h8")))
    assert next(each for each in found.tensors if each.name == "lm_head.q_weight").shape == (256 * 8 // 32, MODEL.rows)


def test_a_layer_without_a_rung_is_a_mistake() -> None:
    with pytest.raises(KeyError, match=r"model\.layers\.0\.self_attn\.q_proj"):
        allocated(plan(MODEL, SPEC), {})


@pytest.mark.parametrize("rung", LADDER, ids=str)
def test_bits_are_those_that_are_counted(rung: Rung) -> None:
    sizes = [stored_bits(rung.groups(width), height) for height, width in linears(MODEL).values()]
    weights = sum(height * width for height, width in linears(MODEL).values())
    assert chosen(rung).nominal_bits_per_weight == sum(sizes) / weights


@pytest.mark.parametrize("tied", [True, False])
def test_a_budget_that_is_spent_makes_the_planned_bytes(tied: bool) -> None:
    model = replace(MODEL, tied=tied, rows=1001, attention_bias=True)
    planned = plan(model, SPEC)
    weights = sum(height * width for height, width in linears(model).values())
    assert planned.budget == 465 * weights // 100
    assert planned.nominal_bits_per_weight == 4.65
    assert planned.bits_per_weight == 8 * planned.bytes / model.weights
    found = chosen(LADDER[9], planned)
    spent = found.nominal_bits_per_weight * weights
    assert planned.bytes - found.bytes == pytest.approx((planned.budget - spent) / 8, abs=1)


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"intermediate": 528}, "mlp.down_proj", "multiples of (32, 32)"),
        ({"intermediate": 528}, "mlp.gate_proj", "multiples of (32, 32)"),
        ({"head_dim": 12, "heads": 8}, "self_attn.k_proj", "multiples of (32, 32)"),
        ({"hidden": 264}, "self_attn.q_proj", "multiples of (32, 32)"),
        ({"intermediate": 65568}, "mlp.down_proj", "at most 65536"),
    ],
)
def test_shapes_that_the_reader_cannot_hold_are_refused(change: dict[str, int], field: str, expected: str) -> None:
    with pytest.raises(Refusal) as refusal:
        plan(replace(MODEL, **change), SPEC)
    findings = {finding.field: finding for finding in refusal.value.findings}
    assert findings[f"model.layers.0.{field}"].expected.startswith(expected)
    assert {(finding.rule, name.split(".")[2]) for name, finding in findings.items()} == {("group-shape", "0")}
    assert all("use a GGUF" in finding.repair for finding in findings.values())


def test_a_target_below_the_smallest_widths_is_refused_and_the_one_it_names_is_not() -> None:
    with pytest.raises(Refusal, match=r"bits-reach: found 2\.1 bits per weight .*expected 2\.144 or more"):
        plan(MODEL, parse("exl2:2.1bpw"))
    smallest = sum(stored_bits(LADDER[0].groups(width), height) for height, width in linears(MODEL).values())
    assert plan(MODEL, parse("exl2:2.144bpw")).budget >= smallest
    with pytest.raises(Refusal, match="bits-reach"):
        plan(MODEL, parse("exl2:2.143bpw"))


def test_the_largest_target_is_never_out_of_reach() -> None:
    largest = sum(stored_bits(LADDER[-1].groups(width), height) for height, width in linears(MODEL).values())
    assert plan(MODEL, parse("exl2:8.0bpw")).budget < largest


def test_the_reader_divides_an_mlp_128_features_at_a_time() -> None:
    assert plan(MODEL, SPEC).unsplit == dict.fromkeys((1, 2, 4, 8), ())
    uneven = plan(replace(MODEL, intermediate=544), SPEC).unsplit
    assert uneven == {1: ()} | dict.fromkeys((2, 4, 8), ("gate_proj", "up_proj", "down_proj"))
    assert chosen(LADDER[0], plan(replace(MODEL, intermediate=544), SPEC)).unsplit == uneven
