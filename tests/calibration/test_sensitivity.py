"""What a disturbed weight does to the logits, for all in one pass: the oracle sets one weight of the whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from hermetiq.calibration import sensitivity
from hermetiq.calibration.observe import Block, observe
from hermetiq.calibration.sensitivity import Probes, choose_probe_rows, probe_bytes
from hermetiq.calibration.walk import Walk
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


@pytest.mark.parametrize(("points", "tolerance"), [(1000, 0.01), (64, 0.1)], ids=["all-tokens", "some-tokens"])
def test_divergences_are_those_of_the_whole_model_with_one_weight_disturbed(
    folder: Path,
    rows: list[list[int]],
    device: torch.device,
    points: int,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sensitivity, "_POINTS", points)
    oracle = whole_model(folder, rows)
    blocks = seen(folder, rows[:1], device=device, disturb=noisy, probe_rows=rows)
    assert not any(block.divergences for block in blocks[:-1])
    assert len(oracle) == 3 * len(LINEARS)
    # Below the second figure, the oracle's own float32 rounds.
    assert dict(blocks[-1].divergences) == pytest.approx(oracle, rel=tolerance, abs=1e-7)


def test_likeliest_tokens_count_themselves_and_the_rest_by_strata() -> None:
    """A vocabulary so flat that most of its weight lies in the strata, and there alone logits move."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(16, 32_000, generator=generator)
    noise = 0.3 * torch.randn(40, 32_000, generator=generator)
    points, weights = sensitivity._points(logits.softmax(-1))
    assert points.shape == weights.shape == (16, 1024)
    torch.testing.assert_close(weights.sum(-1), torch.ones(16))
    whole = logits.log_softmax(-1)
    total, oracle = torch.zeros(40), torch.zeros(40)
    for token in range(16):
        shifts = noise * (logits[token] < 2)
        total += sensitivity._divergence(shifts[:, points[token]], weights[token])
        moved = (logits[token] + shifts).log_softmax(-1)
        oracle += (whole[token].exp() * (whole[token] - moved)).sum(-1)
    torch.testing.assert_close(total, oracle, rtol=0.05, atol=0)


def test_a_resumed_calibration_measures_the_same_bits(folder: Path, rows: list[list[int]]) -> None:
    options = {"disturb": noisy, "probe_rows": rows[:2]}
    whole = seen(folder, rows, **options)[-1].divergences
    for start in (1, 3):
        assert seen(folder, rows, start=start, **options)[-1].divergences == whole


def test_probes_leave_everything_else_as_it_is(folder: Path, rows: list[list[int]]) -> None:
    plain = seen(folder, rows)
    probed = seen(folder, rows, disturb=noisy, probe_rows=rows)
    assert not plain[-1].divergences
    for one, other in zip(plain, probed, strict=True):
        assert one.peaks == other.peaks
        assert all(torch.equal(item.gram, other.inputs[name].gram) for name, item in one.inputs.items())
        assert all(torch.equal(weight, other.weights[name]) for name, weight in one.weights.items())


@pytest.mark.parametrize("batch_tokens", [1, 400])
def test_copies_may_travel_alone_or_together(
    folder: Path, rows: list[list[int]], batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = seen(folder, rows[:1], disturb=noisy, probe_rows=rows[:2])[-1].divergences
    monkeypatch.setattr(sensitivity, "_BATCH_TOKENS", batch_tokens)
    other = seen(folder, rows[:1], disturb=noisy, probe_rows=rows[:2])[-1].divergences
    assert other == pytest.approx(together, rel=0.01, abs=1e-7)


def test_a_weight_that_stays_as_it_was_moves_nothing(folder: Path, rows: list[list[int]]) -> None:
    divergences = seen(folder, rows[:1], disturb=lambda _, weight: weight, probe_rows=rows)[-1].divergences
    assert dict(divergences) == pytest.approx(dict.fromkeys(divergences, 0.0), abs=1e-7)


def test_a_disturbance_that_breaks_the_model_is_an_error_that_names_it(folder: Path, rows: list[list[int]]) -> None:
    def broken(name: str, weight: Tensor) -> Tensor:
        return weight * torch.nan if "1.mlp.up" in name else weight

    with pytest.raises(HermetiqError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        seen(folder, rows[:1], disturb=broken, probe_rows=rows)


@pytest.mark.parametrize("options", [{}, {"probe_rows": [[1]], "sequential": True}])
def test_disturbances_need_rows_and_the_full_precision_model(folder: Path, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="disturbances"):
        seen(folder, [[1]], disturb=noisy, **options)


def test_probe_rows_are_the_beginnings_of_rows_spread_over_all() -> None:
    rows = [[number] * length for number, length in enumerate([500, 500, 40, 500, 500, 500, 500, 500])]
    assert choose_probe_rows(rows, 256) == ((0,) * 64, (2,) * 40, (4,) * 64, (6,) * 64)
    assert choose_probe_rows(rows, 100) == ((0,) * 50, (4,) * 50)
    assert choose_probe_rows(rows[:2], 256) == ((0,) * 64, (1,) * 64)


def test_bytes_are_those_of_all_copies(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", tokenizer="bpe", layers=3)
    with opened(folder) as (config, load):
        walk = Walk(config, load, torch.device("cpu"), torch.float32)
        probes = Probes(walk, [range(20)] * 2, noisy)
        for index, block in enumerate(walk.blocks()):
            probes.advance(index, block)
        assert sum(copy.nbytes for copy in probes._moved.values()) == probe_bytes(model_config(config), 40)
