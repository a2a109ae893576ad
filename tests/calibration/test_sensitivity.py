"""What a disturbed weight does to the logits, in one pass for all: the oracle is the whole model with one weight set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from hermetiq.calibration import sensitivity
from hermetiq.calibration.observe import Block, observe
from hermetiq.calibration.sensitivity import choose_probe_rows, probe_bytes
from hermetiq.errors import HermetiqError
from tests.calibration.walking import opened
from tests.fixtures.models import model_config, tiny_checkpoint

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


def noisy(name: str, weight: Tensor) -> Tensor:
    """A disturbance of its own for every weight, which depends on nothing else."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    return weight + 2 * weight.std() * torch.randn(weight.shape, generator=generator).to(weight.device)


@pytest.fixture(scope="module")
def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 800, (length,), generator=generator).tolist() for length in (30, 12, 30, 80)]


@pytest.fixture(scope="module", params=[("qwen2", False), ("qwen3", True)], ids=["qwen2", "qwen3-tied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, tied = request.param
    return tiny_checkpoint(
        tmp_path_factory.mktemp("sensitivity") / "model", family=family, tied=tied, tokenizer="bpe", layers=3
    )


def seen(folder: Path, rows: list[list[int]], **options: object) -> list[Block]:
    """Every block that `observe` shows."""
    blocks: list[Block] = []
    with opened(folder) as (config, load):
        observe(config, load, rows, blocks.append, **options)
    return blocks


def whole_model(folder: Path, rows: list[list[int]]) -> dict[str, float]:
    """The oracle: mean KL over all tokens, from the model as transformers loads it, a weight and a row at a time."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    @torch.no_grad()
    def log_probabilities() -> Tensor:
        return torch.cat([model(torch.tensor([row])).logits[0].double().log_softmax(-1) for row in rows])

    clean, found = log_probabilities(), {}
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.weight"):
            own = parameter.data
            parameter.data = noisy(name, own)
            found[name] = float((clean.exp() * (clean - log_probabilities())).sum(-1).mean())
            parameter.data = own
    return found


@pytest.mark.parametrize("points", [1000, 64], ids=["all-tokens", "some-tokens"])
def test_divergences_are_those_of_the_whole_model_with_one_weight_disturbed(
    folder: Path, rows: list[list[int]], device: torch.device, points: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "_POINTS", points)
    oracle = whole_model(folder, rows)
    head = seen(folder, rows, device=device, disturb=noisy, probe_rows=rows)[-1]
    assert set(head.divergences) == set(oracle)
    assert len(oracle) == 3 * len(LINEARS)
    for name, kl in oracle.items():
        assert head.divergences[name] == pytest.approx(kl, rel=0.01 if points == 1000 else 0.1)
