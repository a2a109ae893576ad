"""Folds: a real block computes what it computed, and the factors are the ones with the least expected error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hermetiq.model import ModelConfig
from hermetiq.quantize.fold import GROUPS, Folded, Group, balanced, fold
from tests.fixtures.models import Family
from tests.oracles import fold as oracle
from tests.quantize.inputs import Block, block

WIDEST = 16.0
BLOCKS: dict[str, tuple[Family, dict[str, Any]]] = {
    "llama": ("llama", {"kv_heads": 4}),
    "llama with every bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral, one key head": ("mistral", {"kv_heads": 1}),
    "mistral, six heads": ("mistral", {"hidden": 48, "heads": 6, "kv_heads": 2}),
    "mistral, wide heads": ("mistral", {"head_dim": 32}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}),
}
QKV, OUTPUT, GATE_UP, _ = GROUPS


@pytest.fixture(params=BLOCKS)
def real(request: pytest.FixtureRequest) -> Block:
    family, config = BLOCKS[request.param]
    return block(family, **config)


def sensitivities(real: Block, *, seed: int = 0) -> dict[Group, Tensor]:
    """Random, over two orders of magnitude, with a dead column each."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for group in GROUPS:
        columns = real.tensors[group.linears[0]].shape[1]
        drawn[group] = torch.randn(columns, generator=generator, dtype=torch.float64).exp()
        drawn[group][columns // 2] = 0.0
    return drawn


def folded(real: Block, device: torch.device | str = "cpu") -> Folded:
    return fold(
        {name: value.to(device) for name, value in real.tensors.items()},
        {group: cost.to(device) for group, cost in sensitivities(real).items()},
        real.model,
    )


def test_the_block_computes_what_it_computed(real: Block, device: torch.device) -> None:
    moved = {name: value.cpu() for name, value in folded(real, device).weights.items()}
    assert moved.keys() == real.tensors.keys()
    assert all(not torch.equal(moved[name], real.tensors[name]) for group in GROUPS for name in group.linears)
    before = real.output()
    torch.testing.assert_close(real.output(moved), before, rtol=1e-9, atol=1e-9 * float(before.abs().max()))


def test_a_fold_that_forgets_a_tensor_is_seen(real: Block) -> None:
    """The tests above can fail: every tensor that a fold changes matters to the output."""
    moved, before = dict(folded(real).weights), real.output()
    changed = [name for name, value in moved.items() if not torch.equal(value, real.tensors[name])]
    assert set(changed) == {name for group in GROUPS for name in (*group.linears, *group.before) if name in moved}
    for name in changed:
        after = real.output(moved | {name: real.tensors[name]})
        assert (after - before).abs().max() > 1e-4 * before.abs().max(), name


def test_columns_are_multiplied_by_what_the_report_says(real: Block) -> None:
    result = folded(real)
    for name in (*QKV.linears[:2], GATE_UP.linears[0]):
        group = QKV if name in QKV.linears else GATE_UP
        torch.testing.assert_close(result.weights[name], real.tensors[name] * result.factors[group], rtol=1e-12, atol=0)


def test_query_heads_of_a_key_head_share_their_factors(real: Block) -> None:
    model: ModelConfig = real.model
    alone = balanced(real.tensors[OUTPUT.linears[0]], sensitivities(real)[OUTPUT])
    shared = folded(real).factors[OUTPUT]
    for head in range(model.heads):
        key_head = head // (model.heads // model.kv_heads)
        together = [h for h in range(model.heads) if h // (model.heads // model.kv_heads) == key_head]
        for place in range(model.head_dim):
            mean = np.exp(np.mean([np.log(alone[h * model.head_dim + place].item()) for h in together]))
            assert shared[head * model.head_dim + place].item() == pytest.approx(mean)


def test_factors_are_bounded(real: Block) -> None:
    extreme = {group: torch.where(cost > 1, cost * 1e30, cost * 1e-30) for group, cost in sensitivities(real).items()}
    result = fold(real.tensors, extreme, real.model)
    for factors in result.factors.values():
        assert factors.min() >= 1 / WIDEST
        assert factors.max() <= WIDEST
    before = real.output()
    torch.testing.assert_close(
        real.output(dict(result.weights)), before, rtol=1e-9, atol=1e-9 * float(before.abs().max())
    )


def test_a_fold_leaves_its_arguments_alone() -> None:
    real = block("qwen2")
    given = real.tensors
    kept = {name: value.clone() for name, value in given.items()}
    fold(given, sensitivities(real), real.model)
    assert all(torch.equal(given[name], value) for name, value in kept.items())


def energy(weight: Tensor) -> oracle.Floats:
    return weight.double().square().mean(0).numpy()


@pytest.mark.parametrize("seed", range(3))
def test_no_factors_have_a_smaller_expected_error(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 6, generator=generator) * torch.randn(6, generator=generator).exp()
    sensitivity = torch.randn(6, generator=generator).exp()
    least = oracle.least(sensitivity.double().numpy(), energy(weight))
    np.testing.assert_allclose(balanced(weight, sensitivity).numpy(), least, rtol=1e-4)


@settings(max_examples=100, deadline=None)
@given(columns=st.integers(1, 9), spread=st.floats(0.001, 2.0), seed=st.integers(0, 10_000))
def test_a_change_of_the_factors_never_helps(columns: int, spread: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, columns, generator=generator) * torch.randn(columns, generator=generator).exp()
    sensitivity = torch.randn(columns, generator=generator).exp()
    factors = balanced(weight, sensitivity).double().numpy()
    moved = factors * (spread * torch.randn(columns, generator=generator)).exp().double().numpy()
    costs = sensitivity.double().numpy()
    assert oracle.expected_error(factors, costs, energy(weight)) <= oracle.expected_error(
        moved, costs, energy(weight)
    ) * (1 + 1e-6)


def test_the_geometric_mean_is_one() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = balanced(torch.randn(8, 50, generator=generator), torch.rand(50, generator=generator))
    assert factors.log().mean().item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("dead", ["weight", "sensitivity", "both"])
def test_columns_without_weights_or_activity_keep_their_size(dead: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, sensitivity = torch.randn(8, 50, generator=generator), 10 * torch.rand(50, generator=generator)
    if dead != "sensitivity":
        weight[:, [3, 40]] = 0.0
    if dead != "weight":
        sensitivity[[3, 40]] = 0.0
    factors = balanced(weight, sensitivity)
    assert factors[[3, 40]].tolist() == [1.0, 1.0]
    others = [column for column in range(50) if column not in (3, 40)]
    torch.testing.assert_close(factors[others], balanced(weight[:, others], sensitivity[others]))


def test_nothing_but_dead_columns() -> None:
    assert balanced(torch.zeros(2, 3), torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]
