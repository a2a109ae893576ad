"""Peaks of activations against transformers' own hooks, and states against the walk's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from hermetiq.calibration.peaks import final_hidden_and_peaks
from hermetiq.calibration.walk import final_hidden
from hermetiq.checkpoint import open_checkpoint
from hermetiq.errors import Refusal
from hermetiq.model import EMBEDDING
from tests.fixtures.models import tiny_checkpoint

ROWS = [[5, 6, 7], list(range(10, 31)), [400]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("m") / "m", family="qwen2", tokenizer="bpe", dtype=torch.float32)


def test_states_are_the_walks_and_peaks_are_of_every_module_without_padding(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    blocks: list[tuple[int, int]] = []
    states, peaks = final_hidden_and_peaks(
        checkpoint.config, checkpoint.load, ROWS, on_block=lambda done, count: blocks.append((done, count))
    )
    for mine, theirs in zip(states, final_hidden(checkpoint.config, checkpoint.load, ROWS), strict=True):
        assert torch.equal(mine, theirs)
    assert blocks == [(1, 2), (2, 2)]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).model
    expected: dict[str, float] = {}

    def hear(name: str, output: object) -> None:
        value = output[0] if isinstance(output, tuple) else output
        assert isinstance(value, torch.Tensor)
        expected[name] = max(expected.get(name, 0.0), float(value.abs().max()))

    modules = ((name, module) for name, module in model.named_modules() if name and "rotary" not in name)
    for name, module in modules:
        module.register_forward_hook(lambda _, __, output, name=name: hear(f"model.{name}", output))
    with torch.no_grad():
        for row in ROWS:
            model(torch.tensor([row]))
    assert peaks.keys() == expected.keys()
    for name, peak in peaks.items():
        assert peak == pytest.approx(expected[name], rel=1e-4), name


@pytest.mark.parametrize("value", [1e4, float("inf")], ids=["large", "broken"])
def test_padding_counts_for_nothing_and_a_broken_token_ends_the_walk(folder: Path, value: float) -> None:
    checkpoint = open_checkpoint(folder)

    def load(name: str) -> torch.Tensor:
        weight = checkpoint.load(name).clone()
        if name == EMBEDDING:
            weight[0] = value  # The token that fills short rows up.
        return weight

    if value == float("inf"):
        with pytest.raises(Refusal, match="hessian-nan") as caught:
            final_hidden_and_peaks(checkpoint.config, load, [*ROWS, [0, 5]])
        assert caught.value.findings[0].field == "model.embed_tokens"
    else:
        _, peaks = final_hidden_and_peaks(checkpoint.config, load, ROWS)
        assert peaks["model.embed_tokens"] < 1
        assert final_hidden_and_peaks(checkpoint.config, load, [[0, 5]])[1]["model.embed_tokens"] == value
