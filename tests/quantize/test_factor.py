"""The factor against the inverse Hessian itself, and every step of the ladder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hermetiq.quantize.factor import DAMPING, ROUND_TO_NEAREST, Factor, factorize
from hermetiq.quantize.spec import Order
from tests.oracles import gptq as oracle
from tests.oracles.gptq import Floats
from tests.quantize.inputs import activations, observed, statistics, with_eigenvalues

ORDERS: tuple[Order, ...] = ("static", "actorder", "plain")


def double(tensor: Tensor) -> Floats:
    return tensor.cpu().double().numpy()


def expected_order(gram: Floats, order: Order) -> list[int]:
    return list(range(len(gram))) if order == "plain" else oracle.most_active_first(gram)


def hessian(gram: Tensor, damping: float = DAMPING) -> Floats:
    """With a mean diagonal of one before damping."""
    exact = double(gram)
    return oracle.damped(exact / exact.diagonal().mean(), damping)


def product(factor: Factor) -> Floats:
    """Uᵀ U, columns in their own order."""
    upper = double(factor.upper)
    unsorted = np.argsort(factor.order.cpu().numpy())
    return (upper.T @ upper)[np.ix_(unsorted, unsorted)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("columns", "dead"), [(1, 0), (3, 0), (33, 0), (96, 5)])
def test_the_factor_squared_is_the_inverse_hessian(columns: int, dead: int, order: Order, device: torch.device) -> None:
    given = observed(activations(columns, dead=dead), device)
    factor = factorize(given, order)
    assert factor.order.tolist() == expected_order(double(given.gram), order)
    assert torch.equal(factor.upper, factor.upper.triu())
    assert (factor.damping, factor.step) == (DAMPING, "")
    inverse = np.linalg.inv(hessian(given.gram))
    np.testing.assert_allclose(product(factor), inverse, rtol=0, atol=1e-4 * np.abs(inverse).max())


@pytest.mark.parametrize("order", ORDERS)
def test_sensitivity_is_what_later_columns_cannot_explain(order: Order, device: torch.device) -> None:
    given = observed(activations(48, dead=2), device)
    expected = oracle.conditional_variance(hessian(given.gram), expected_order(double(given.gram), order))
    np.testing.assert_allclose(double(factorize(given, order).sensitivity), expected, rtol=1e-3)


def test_the_most_active_column_comes_first_and_ties_keep_their_order() -> None:
    factor = factorize(statistics(torch.diag(torch.tensor([1.0, 4.0, 1.0, 9.0, 1.0]))), "static")
    assert factor.order.tolist() == [3, 1, 0, 2, 4]


def test_the_scale_of_the_inputs_does_not_matter() -> None:
    inputs = activations(40)
    small, large = (factorize(observed(inputs * size), "static") for size in (2.0**-20, 2.0**20))
    assert torch.equal(small.upper, large.upper)


def test_a_folded_factor_is_the_factor_of_folded_inputs(device: torch.device) -> None:
    given = observed(activations(48), device)
    factors = torch.rand(48, generator=torch.Generator().manual_seed(2)).add(0.3).to(device)
    folded = factorize(given, "static").folded(factors)
    scales = double(factors)
    inverse = np.linalg.inv(hessian(given.gram) / np.outer(scales, scales))
    np.testing.assert_allclose(product(folded), inverse, rtol=0, atol=1e-4 * np.abs(inverse).max())


def test_folding_and_factorising_commute_up_to_damping() -> None:
    given = observed(activations(48, skew=0.1))
    factors = torch.rand(48, generator=torch.Generator().manual_seed(2)).add(0.7)
    after = statistics(given.gram / torch.outer(factors, factors))
    sensitivities = [
        factorize(given, "plain").folded(factors).sensitivity,
        factorize(after, "plain").sensitivity * after.gram.diagonal().mean() / given.gram.diagonal().mean(),
    ]
    torch.testing.assert_close(*sensitivities, rtol=0.1, atol=0)


def test_dead_columns_exchange_nothing(device: torch.device) -> None:
    given = observed(activations(40, dead=6), device)
    dead = given.gram.diagonal() == 0
    factor = factorize(given, "static")
    sorted_dead = dead[factor.order]
    assert sorted_dead[-6:].all()
    assert torch.equal(factor.upper[sorted_dead], torch.diag(factor.upper.diagonal())[sorted_dead])
    assert not factor.upper[~sorted_dead][:, sorted_dead].any()


def test_inputs_that_were_never_active(device: torch.device) -> None:
    factor = factorize(statistics(torch.zeros(8, 8, device=device)), "static")
    torch.testing.assert_close(factor.upper, DAMPING**-0.5 * torch.eye(8, device=device))


def test_fewer_tokens_than_columns_are_no_reason_to_climb(device: torch.device) -> None:
    factor = factorize(observed(activations(96)[:5], device), "static")
    assert (factor.damping, factor.step) == (DAMPING, "")


def on_the_edge() -> Tensor:
    """Pairs of columns that only float64 tells apart: the damped diagonal exceeds the rest by less than half a ulp."""
    diagonal = 1 + torch.arange(-32, 32) / 128
    diagonal -= diagonal.mean() - 1
    beside = np.nextafter(np.float32(diagonal.double().numpy() + DAMPING), np.float32(0))
    gram = torch.zeros(128, 128)
    for pair, (own, other) in enumerate(zip(diagonal.tolist(), beside.tolist(), strict=True)):
        gram[2 * pair : 2 * pair + 2, 2 * pair : 2 * pair + 2] = torch.tensor([[own, other], [other, own]])
    return gram


@pytest.mark.parametrize(
    ("gram", "damping", "step"),
    [
        (with_eigenvalues(*[1.0] * 11, 0.0), DAMPING, ""),
        (on_the_edge(), DAMPING, "float64"),
        (with_eigenvalues(*[1.0] * 11, -0.05), 0.1, "damping 0.1"),
        (with_eigenvalues(*[1.0] * 11, -0.5), 1.0, "damping 1.0"),
        (with_eigenvalues(*[1.0] * 11, -3.0), 1.0, ROUND_TO_NEAREST),
    ],
    ids=["semidefinite", "float64", "0.1", "1.0", "hopeless"],
)
def test_the_ladder_climbs_as_far_as_it_must(gram: Tensor, damping: float, step: str, device: torch.device) -> None:
    factor = factorize(statistics(gram.to(device)), "plain")
    assert (factor.damping, factor.step) == (damping, step)
    assert factor.upper.dtype == torch.float32
    if step == ROUND_TO_NEAREST:
        assert torch.equal(factor.upper, torch.diag(factor.upper.diagonal()))
        np.testing.assert_allclose(double(factor.sensitivity), double(gram.diagonal()) + 1.0, rtol=1e-5)
    elif step != "float64":
        np.testing.assert_allclose(product(factor), np.linalg.inv(hessian(gram, damping)), rtol=0, atol=1e-2)


def test_on_the_edge_is_what_it_says() -> None:
    assert np.linalg.eigvalsh(hessian(on_the_edge())).min() > 0
