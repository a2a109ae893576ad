"""A real block from statistics to codes: nothing is lost or done twice, and recipes do not disturb each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from hermetiq.calibration.statistics import Statistics
from hermetiq.model import ModelConfig
from hermetiq.quantize import block as block_module
from hermetiq.quantize.block import BlockSolver, SolvedBlock
from hermetiq.quantize.factor import DAMPING, ROUND_TO_NEAREST, Factor, factorize
from hermetiq.quantize.fold import GROUPS, fold
from hermetiq.quantize.ladder import LADDER, Rung
from hermetiq.quantize.measure import disturbed
from hermetiq.quantize.result import MixedLinear
from hermetiq.quantize.spec import LinearRecipe, Order, parse
from tests.oracles import gptq as oracle
from tests.quantize.inputs import Block, block, observed, statistics, with_eigenvalues

LINEARS = [name for group in GROUPS for name in group.linears]
RECIPES = {
    text: parse(text).linear
    for text in (
        "gptq:4bit-g32",
        "gptq:3bit-channel-asym",
        "gptq:4bit-g32-actorder",
        "gptq:8bit-g32-plain",
        "awq:4bit-g32",
    )
}
STATIC = "gptq:4bit-g32"


@pytest.fixture(scope="module", params=["qwen2", "mistral", "qwen3"])
def real(request: pytest.FixtureRequest) -> Block:
    """With biases, with grouped heads alone, and with norms on q and k."""
    return block(request.param)


def tensors(real: Block, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    return {name: value.float().to(device) for name, value in real.tensors.items()}


def inputs(real: Block, device: torch.device | str = "cpu") -> dict[str, Statistics]:
    """What the linears saw; those of one input share one object."""
    seen = real.inputs()
    shared = [(group, observed(seen[group.linears[0]].float(), device)) for group in GROUPS]
    return {name: given for group, given in shared for name in group.linears}


def solve(
    weights: Mapping[str, Tensor],
    given: Mapping[str, Statistics],
    model: ModelConfig,
    recipes: Mapping[str, LinearRecipe],
) -> dict[str, SolvedBlock]:
    solver = BlockSolver(weights, given, model)
    return {key: solver.solve(recipe) for key, recipe in recipes.items()}


def solved(
    real: Block, recipes: Mapping[str, LinearRecipe], device: torch.device | str = "cpu"
) -> dict[str, SolvedBlock]:
    return solve(tensors(real, device), inputs(real, device), real.model, recipes)


def rebuilt(result: SolvedBlock) -> dict[str, Tensor]:
    """The whole block as a reader has it."""
    return {**result.others, **{name: linear.dequantize() for name, linear in result.linears.items()}}


def fields(result: SolvedBlock) -> Iterator[tuple[str, Tensor]]:
    yield from result.others.items()
    for name, linear in result.linears.items():
        for field in ("codes", "scales", "zeros", "group_of"):
            yield f"{name} {field}", getattr(linear, field)


def test_every_tensor_of_the_block_comes_out_once(real: Block) -> None:
    results = solved(real, RECIPES)
    assert results.keys() == RECIPES.keys()
    for key, result in results.items():
        assert sorted(result.linears) == sorted(LINEARS)
        assert not result.linears.keys() & result.others.keys()
        shapes = {name: value.shape for name, value in rebuilt(result).items()}
        assert shapes == {name: value.shape for name, value in real.tensors.items()}
        assert all(value.dtype == torch.float32 for value in result.others.values())
        assert {linear.bits for linear in result.linears.values()} == {RECIPES[key].bits}
        for name, linear in result.linears.items():
            assert len(linear.scales) == RECIPES[key].groups(real.tensors[name].shape[1])


def test_the_block_still_computes_what_it_computed(real: Block) -> None:
    """Folds of the norms and codes of the linears fit each other: at eight bits hardly a difference is left."""
    before = real.output()
    results = solved(real, {f"{bits}bit": parse(f"gptq:{bits}bit-g32").linear for bits in (8, 4, 2)})
    differences = [(real.output(rebuilt(result)) - before).norm().item() for result in results.values()]
    assert differences[0] < 0.02 * before.norm().item()
    assert differences[0] < 0.2 * differences[1] < 0.1 * differences[2]


@pytest.mark.parametrize("key", RECIPES)
def test_errors_are_shares_of_the_output(real: Block, key: str) -> None:
    """Of the output as it is after the folds, v and up being scaled by those of o and down."""
    recipe = RECIPES[key]
    result = solved(real, {key: recipe})[key]
    order: Order = "plain" if recipe.order == "plain" else "static"
    given = inputs(real)
    sensitivities = {group: factorize(given[group.linears[0]], order).sensitivity for group in GROUPS}
    moved = fold(tensors(real), sensitivities, real.model)
    assert list(result.errors) == LINEARS
    expected = {}
    for group in GROUPS:
        gram = given[group.linears[0]].gram.double().numpy()
        for name in group.linears:
            # Unfolded, the columns meet the inputs that were observed.
            weight, read = (
                (value / moved.factors[group]).double().numpy()
                for value in (moved.weights[name], result.linears[name].dequantize())
            )
            energies = [
                np.trace(value @ hessian @ value.T)
                for value, hessian in ((read - weight, oracle.damped(gram, DAMPING)), (weight, gram))
            ]
            expected[name] = energies[0] / energies[1]
    assert result.errors == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("keys", "orders"),
    [
        ([STATIC, "awq:4bit-g32", "gptq:4bit-g32-actorder"], ["static"]),
        (["gptq:8bit-g32-plain"], ["plain"]),
        (list(RECIPES), ["static", "plain"]),
    ],
)
def test_each_input_is_factorised_once_an_order(
    keys: list[str], orders: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, str]] = []

    def counted(statistics: Statistics, order: Order) -> Factor:
        calls.append((id(statistics), order))
        return factorize(statistics, order)

    real = block("mistral")
    given = inputs(real)
    monkeypatch.setattr(block_module, "factorize", counted)
    solve(tensors(real), given, real.model, {key: RECIPES[key] for key in keys})
    assert sorted(calls) == sorted((id(given[group.linears[0]]), order) for group in GROUPS for order in orders)


def test_a_recipe_comes_out_the_same_alone_and_among_others(real: Block) -> None:
    together = solved(real, RECIPES)
    for key, recipe in RECIPES.items():
        alone = solved(real, {"other name": recipe})["other name"]
        for (name, expected), (_, found) in zip(fields(together[key]), fields(alone), strict=True):
            assert torch.equal(expected, found), (key, name)
        assert together[key].errors == alone.errors
        assert together[key].steps == alone.steps


def test_nothing_is_done_for_nothing() -> None:
    assert solved(block("mistral"), {}) == {}


def test_the_arguments_are_left_alone() -> None:
    real = block("qwen2")
    weights, given = tensors(real), inputs(real)
    solve(weights, given, real.model, RECIPES)
    assert all(torch.equal(value, real.tensors[name].float()) for name, value in weights.items())
    assert all(torch.equal(value.gram, inputs(real)[name].gram) for name, value in given.items())


def test_extra_steps_are_told_with_the_layers_they_concern(real: Block) -> None:
    given = inputs(real)
    assert solved(real, {STATIC: RECIPES[STATIC]})[STATIC].steps == ()
    for group, lowest in ((GROUPS[2], -0.05), (GROUPS[3], -3.0)):
        columns = real.tensors[group.linears[0]].shape[1]
        broken = statistics(with_eigenvalues(*[1.0] * (columns - 1), lowest))
        given |= dict.fromkeys(group.linears, broken)
    result = solve(tensors(real), given, real.model, {STATIC: RECIPES[STATIC]})[STATIC]
    assert result.steps == ("mlp.gate_proj, mlp.up_proj: damping 0.1", f"mlp.down_proj: {ROUND_TO_NEAREST}")


def test_empty_weights_and_silent_inputs(device: torch.device) -> None:
    """A pruned layer and an input that calibration never woke: finite errors, and zeros stay zeros."""
    real = block("mistral")
    weights, given = tensors(real, device), inputs(real, device)
    empty, (silent,) = "self_attn.v_proj.weight", GROUPS[3].linears
    weights[empty] = torch.zeros_like(weights[empty])
    given[silent] = statistics(torch.zeros_like(given[silent].gram))
    for result in solve(weights, given, real.model, RECIPES).values():
        assert all(0 <= error < 1 for error in result.errors.values())
        assert not result.linears[empty].dequantize().any()
        assert result.errors[empty] == 0.0
        rounded = result.linears[silent].dequantize()
        assert (rounded - weights[silent]).norm() < 0.5 * weights[silent].norm()


@pytest.mark.parametrize("key", RECIPES)
def test_devices_agree(key: str, device: torch.device) -> None:
    real = block("qwen2")
    here, there = (solved(real, {key: RECIPES[key]}, place)[key] for place in ("cpu", device))
    for name, value in here.others.items():
        torch.testing.assert_close(there.others[name].cpu(), value, rtol=1e-3, atol=1e-6)
    codes = [np.concatenate([linear.codes.cpu().flatten() for linear in r.linears.values()]) for r in (here, there)]
    apart = np.abs(codes[0].astype(int) - codes[1].astype(int))
    assert (apart > 0).mean() < 0.01
    for name, error in here.errors.items():
        assert there.errors[name] == pytest.approx(error, rel=0.02)


RUNGS = dict(zip(LINEARS, (LADDER[place] for place in (2, 4, 6, 8, 11, 14, 16)), strict=True))
"""Another for each linear."""


def of_one_rung(place: int) -> dict[str, Rung]:
    return dict.fromkeys(LINEARS, LADDER[place])


def mixed_fields(result: SolvedBlock) -> Iterator[tuple[str, Tensor]]:
    yield from result.others.items()
    for name, linear in result.linears.items():
        for field in ("codes", "indices", "scale_max", "order"):
            yield f"{name} {field}", getattr(linear, field)


def test_every_linear_gets_its_rung(real: Block) -> None:
    result = BlockSolver(tensors(real), inputs(real), real.model).solve(RUNGS)
    assert list(result.linears) == LINEARS
    shapes = {name: value.shape for name, value in rebuilt(result).items()}
    assert shapes == {name: value.shape for name, value in real.tensors.items()}
    for name, linear in result.linears.items():
        assert isinstance(linear, MixedLinear)
        assert linear.groups == RUNGS[name].groups(real.tensors[name].shape[1])
    for group in GROUPS:
        orders = [result.linears[name].order for name in group.linears]
        assert all(torch.equal(order, orders[0]) for order in orders)


def test_the_block_of_rungs_still_computes_what_it_computed() -> None:
    real = block("qwen2")
    before, solver = real.output(), BlockSolver(tensors(real), inputs(real), real.model)
    differences = [
        (real.output(rebuilt(solver.solve(of_one_rung(place)))) - before).norm().item() for place in (16, 8, 1)
    ]
    assert differences[0] < 0.02 * before.norm().item()
    assert differences[0] < 0.2 * differences[1] < 0.1 * differences[2]


def test_rungs_are_measured_as_they_are_solved() -> None:
    """But for polishing and rows left out; on the inputs and outputs as they are before the folds."""
    real = block("mistral")
    given, places = inputs(real), (1, 13)
    solver = BlockSolver(tensors(real), given, real.model)
    measured = solver.measure([LADDER[place] for place in places])
    assert list(measured.errors) == LINEARS
    sensitivities = {group: factorize(given[group.linears[0]], "static").sensitivity for group in GROUPS}
    moved = fold(tensors(real), sensitivities, real.model)
    assert moved.rows.keys() == {"self_attn.v_proj.weight", "mlp.up_proj.weight"}
    for at, place in enumerate(places):
        result = solver.solve(of_one_rung(place))
        for group in GROUPS:
            gram = given[group.linears[0]].gram.double().numpy()
            for name in group.linears:
                added = (result.linears[name].dequantize() - moved.weights[name]) / moved.factors[group]
                if name in moved.rows:
                    added = added * moved.rows[name][:, None]
                error = added.double().numpy()
                energy = np.trace(error @ oracle.damped(gram, DAMPING) @ error.T) / gram.diagonal().mean()
                assert 0.6 < energy / measured.errors[name][at] < 1.2


def test_disturbances_have_the_energy_of_what_they_add(real: Block) -> None:
    """On the weights and inputs that calibration runs with, which are those before the folds."""
    weights, given = tensors(real), inputs(real)
    measured = BlockSolver(weights, given, real.model).measure(LADDER[:1])
    assert sorted(measured.disturbances) == sorted(LINEARS)
    for name, found in measured.disturbances.items():
        gram = given[name].gram.double().numpy()
        added = (disturbed(weights[name]) - weights[name]).double().numpy()
        assert found == pytest.approx(np.trace(added @ gram @ added.T) / gram.diagonal().mean(), rel=1e-3)


def test_rungs_come_out_the_same_alone_and_among_recipes() -> None:
    real = block("qwen3")
    weights, given = tensors(real), inputs(real)
    shared, alone = (BlockSolver(weights, given, real.model) for _ in range(2))
    shared.solve(RECIPES[STATIC])
    measured = shared.measure(LADDER[:2])
    pairs = zip(mixed_fields(shared.solve(RUNGS)), mixed_fields(alone.solve(RUNGS)), strict=True)
    assert all(torch.equal(one, other) for (_, one), (_, other) in pairs)
    assert alone.measure(LADDER[:2]) == measured
    assert all(torch.equal(value, real.tensors[name].float()) for name, value in weights.items())


def test_empty_weights_and_silent_inputs_on_rungs(device: torch.device) -> None:
    real = block("mistral")
    weights, given = tensors(real, device), inputs(real, device)
    empty, (silent,) = "self_attn.v_proj.weight", GROUPS[3].linears
    weights[empty] = torch.zeros_like(weights[empty])
    given[silent] = statistics(torch.zeros_like(given[silent].gram))
    solver = BlockSolver(weights, given, real.model)
    result, measured = solver.solve(RUNGS), solver.measure(LADDER[::16])
    assert all(0 <= error < 1 for error in result.errors.values())
    assert not result.linears[empty].dequantize().any()
    assert measured.errors[empty] == (0.0, 0.0)
    assert measured.disturbances[empty] == measured.disturbances[silent] == 0.0
    assert np.isfinite([error for errors in measured.errors.values() for error in errors]).all()
    # Of inputs that were never seen only the damping speaks: rounding to nearest, and better on better rungs.
    assert measured.errors[silent][0] > measured.errors[silent][-1] > 0
