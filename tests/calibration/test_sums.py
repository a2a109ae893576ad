"""Sums equal their definition, and products on fast units stay close enough for what solvers make of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hermetiq.calibration import sums
from hermetiq.calibration.observe import Block, observe
from hermetiq.calibration.statistics import Statistics
from hermetiq.calibration.sums import Addend, Sums, products
from tests.calibration.walking import opened
from tests.fixtures.models import tiny_checkpoint

TOLERANCE = 5e-3
"""Of the Gram matrix's diagonal, and of the Cholesky factor of the damped inverse, against float64.

Measured on SmolLM2 with 6,000 tokens: at most 3.6e-3 and 2.5e-3 with bfloat16 factors, 6e-7 and 1e-4 in float32.
"""


def activations(tokens: int = 4096, width: int = 200) -> Tensor:  # (tokens, width)
    """Correlated columns of very different sizes, as a model's are."""
    generator = torch.Generator().manual_seed(5)
    mix = torch.randn(width, width, generator=generator) / width**0.5 + torch.eye(width)
    sizes = torch.exp(1.5 * torch.randn(width, generator=generator))
    return torch.randn(tokens, width, generator=generator) @ mix * sizes


def summed(batches: Sequence[Tensor]) -> Statistics:
    """What batches add up to, two at a time."""
    sums = Sums(Addend.of(batches[0]))
    for start in range(0, len(batches), 2):
        for panel in sums.adding([Addend.of(batch) for batch in batches[start : start + 2]]):
            panel()
    return sums.statistics()


def feedback(gram: Tensor) -> Tensor:
    """What GPTQ feeds errors forward with: the upper Cholesky factor of the inverse, one percent damped."""
    double = gram.double().cpu()
    damped = double + 0.01 * double.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


@pytest.mark.parametrize("width", [1, 95, 97, 400])
def test_sums_are_their_definition_at_any_width(width: int, device: torch.device) -> None:
    x = activations(300, width)
    item = summed(x.to(device).split(128))
    assert torch.equal(item.gram, item.gram.T)
    torch.testing.assert_close(item.gram.double().cpu(), x.double().T @ x.double(), rtol=1e-5, atol=1e-2)
    assert (item.max_abs, item.tokens) == (float(x.abs().max()), 300)


@pytest.mark.parametrize("rounded", [False, True], ids=["as-here", "bfloat16-factors"])
def test_fast_products_stay_within_the_tolerance_of_float64(device: torch.device, rounded: bool) -> None:
    """`bfloat16-factors` holds the gate for the fast units' rounding on machines that have none."""
    x = activations()
    with products("auto"):
        item = summed(x.to(device, torch.bfloat16 if rounded else torch.float32).split(1024))
    gram, exact = item.gram.double().cpu(), x.double().T @ x.double()
    assert ((gram.diagonal() - exact.diagonal()) / exact.diagonal()).abs().max() < TOLERANCE
    mine, oracle = feedback(gram), feedback(exact)
    assert (mine - oracle).norm() / oracle.norm() < TOLERANCE


def test_sums_of_half_precision_states_are_kept_in_float32() -> None:
    item = summed([torch.ones(1, 2, dtype=torch.bfloat16)] * 1000)
    assert item.gram.dtype == torch.float32
    assert item.gram.tolist() == [[1000, 1000], [1000, 1000]]


def precision() -> tuple[str, str]:
    return torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision


def test_precision_is_lowered_inside_only() -> None:
    before = precision()
    with products("auto"):
        assert precision() == ("bf16", "tf32")
    assert precision() == before
    with products("float32"):
        assert precision() == before


def test_precision_is_restored_when_work_fails() -> None:
    before = precision()
    with pytest.raises(KeyError), products("auto"):
        raise KeyError
    assert precision() == before


def test_solvers_run_in_the_precision_that_the_program_set(tmp_path: Path) -> None:
    folder, before = tiny_checkpoint(tmp_path / "model", tokenizer="bpe"), precision()
    during = []

    def visit(block: Block) -> None:
        during.append(precision())

    with opened(folder) as (config, load):
        observe(config, load, [[1, 2, 3]], visit)
    assert during == [before] * 3
    assert precision() == before


def test_layers_in_bfloat16_keep_the_statistics_and_the_residual_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forced here, as few machines would choose it; sums themselves are never rounded."""
    folder = tiny_checkpoint(tmp_path / "model", tokenizer="bpe")
    rows = [list(range(3, 200)), [5, 9, 4]]
    exact: dict[str, Statistics] = {}
    rounded: dict[str, Statistics] = {}
    monkeypatch.setattr(sums, "_autocasts", lambda precision, device: precision == "auto")
    assert sums.arithmetic("auto", torch.device("cpu")) == "bfloat16 layers"
    with opened(folder) as (config, load):
        observe(config, load, rows, lambda block: exact.update(block.inputs), precision="float32")
        observe(config, load, rows, lambda block: rounded.update(block.inputs))
    moved = {
        name: float((item.gram - exact[name].gram).norm() / exact[name].gram.norm()) for name, item in rounded.items()
    }
    assert max(moved.values()) < 0.02
    # What goes into the first layers has been through none; the rest shows that the layers did run so.
    assert moved["model.layers.0.self_attn.q_proj.weight"] < 1e-6
    assert moved["model.layers.1.mlp.down_proj.weight"] > 1e-4
