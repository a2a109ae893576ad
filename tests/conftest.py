"""Fixtures that every test folder shares. Session folders are read-only by convention: break a `copy_of` them."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from hermetiq.pipeline import export, prepare
from hermetiq.quantize.spec import parse
from tests.fixtures import elsewhere
from tests.fixtures.hermes import trained_checkpoint
from tests.fixtures.models import tiny_checkpoint


def pytest_collection_finish() -> None:
    """Looking for garbage took a fifth of the time: now less often, and not in what is imported already and stays."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.fixture(params=["cpu", "elsewhere", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that solvers and walk must work on (`fixtures/elsewhere.py`); `-m gpu` takes CUDA alone."""
    if request.param == "elsewhere":
        return elsewhere.device()
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def hermes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OpenHermes-like Mistral with random weights: 32,002 rows, hidden 64, two layers, one shard."""
    return tiny_checkpoint(tmp_path_factory.mktemp("fixtures") / "hermes")


@pytest.fixture(scope="session")
def trained_hermes() -> Path:
    """The Hermes-like model that answers every chat of `tests.fixtures.hermes.CHATS`; trained once, then cached."""
    return trained_checkpoint()


@pytest.fixture(scope="session")
def exported_hermes(trained_hermes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`trained_hermes` as F32, Q8_0 and Q4_K_M, with its `hermetiq.json`."""
    folder = tmp_path_factory.mktemp("exports") / "hermes"
    export(prepare(trained_hermes, [parse(f"gguf:{recipe}") for recipe in ("F32", "Q8_0", "Q4_K_M")]), folder)
    return folder
