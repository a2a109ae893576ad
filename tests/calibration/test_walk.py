"""The walk computes what transformers computes with the whole model in memory."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from hermetiq.calibration.walk import final_hidden, head
from hermetiq.errors import HermetiqError
from tests.calibration.walking import opened
from tests.fixtures.models import Family, tiny_checkpoint

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "llama-biased": {"family": "llama", "config": {"attention_bias": True, "mlp_bias": True}},
    "llama3-rope": {"family": "llama", "config": {"rope_scaling": LLAMA3_ROPE}},
    "mistral": {"family": "mistral"},
    "mistral-sliding": {"family": "mistral", "config": {"sliding_window": 6}},
    "qwen2": {"family": "qwen2"},
    "qwen2-tied": {"family": "qwen2", "tied": True},
    "qwen2-sliding-above-1": {
        "family": "qwen2",
        "config": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    },
    "qwen3": {"family": "qwen3"},
    "qwen3-tied-wide-heads": {"family": "qwen3", "tied": True, "config": {"head_dim": 32}},
}
LENGTHS = (21, 1, 40, 21, 700, 12)
"""The short rows share one padded batch; the long one stands alone."""


@pytest.fixture(scope="module")
def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 800, (length,), generator=generator).tolist() for length in LENGTHS]


def whole_model(folder: Path, rows: list[list[int]]) -> tuple[list[Tensor], list[Tensor]]:
    """The oracle: final states and logits of each row alone, from the model as transformers loads it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        states = [model.model(torch.tensor([row])).last_hidden_state[0] for row in rows]
        return states, [model.lm_head(state) for state in states]


@pytest.mark.parametrize("variant", VARIANTS)
def test_walk_equals_the_whole_model(tmp_path: Path, rows: list[list[int]], variant: str) -> None:
    folder = tiny_checkpoint(tmp_path / variant, tokenizer="bpe", layers=3, **VARIANTS[variant])
    states, logits = whole_model(folder, rows)
    with opened(folder) as (config, load):
        walked = final_hidden(config, load, rows)
        output = head(config, load)
    for mine, state, row_logits in zip(walked, states, logits, strict=True):
        torch.testing.assert_close(mine, state, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(output(mine), row_logits, atol=1e-5, rtol=1e-5)


def test_variants_are_not_all_the_same_model(tmp_path: Path, rows: list[list[int]]) -> None:
    """Were sliding windows or rope scaling ignored by both sides, the comparison above would prove nothing."""
    walked = {}
    for variant in ("llama", "llama3-rope", "mistral", "mistral-sliding", "qwen2", "qwen2-sliding-above-1"):
        folder = tiny_checkpoint(tmp_path / variant, tokenizer="bpe", **VARIANTS[variant])
        with opened(folder) as (config, load):
            walked[variant] = final_hidden(config, load, rows[:1])[0]
    for plain, changed in (
        ("llama", "llama3-rope"),
        ("mistral", "mistral-sliding"),
        ("qwen2", "qwen2-sliding-above-1"),
    ):
        assert not torch.allclose(walked[plain], walked[changed], atol=1e-3)


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_one_block_is_in_memory_at_a_time(tmp_path: Path, family: Family) -> None:
    def peak(layers: int) -> int:
        folder = tiny_checkpoint(tmp_path / f"{family}-{layers}", family=family, tokenizer="bpe", layers=layers)
        before, seen = weights_alive(), []
        with opened(folder) as (config, load):
            final_hidden(config, load, [[1, 2, 3]], on_block=lambda *_: seen.append(weights_alive() - before))
        return max(seen)

    assert 0 < peak(2) == peak(7)


def weights_alive() -> int:
    """Elements of all parameters that exist in the process, those without memory aside."""
    gc.collect()
    # Not isinstance: it asks every object in the process for its class, and some of them warn.
    return sum(item.numel() for item in gc.get_objects() if type(item) is nn.Parameter and not item.is_meta)


def test_progress_counts_every_block(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", tokenizer="bpe", layers=3)
    seen = []
    with opened(folder) as (config, load):
        final_hidden(config, load, [[1]], on_block=lambda *progress: seen.append(progress))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_states_come_in_the_asked_precision(tmp_path: Path, rows: list[list[int]]) -> None:
    folder = tiny_checkpoint(tmp_path / "model", tokenizer="bpe", dtype=torch.float32)
    with opened(folder) as (config, load):
        single = final_hidden(config, load, rows[:1])[0]
        double = final_hidden(config, load, rows[:1], dtype=torch.float64)[0]
    assert double.dtype == torch.float64
    assert 0 < (single - double).abs().max() < 1e-4


def test_unknown_family_is_refused_with_the_list() -> None:
    with pytest.raises(HermetiqError, match=r"'gemma2'.*llama, mistral, qwen2, qwen3"):
        final_hidden({"model_type": "gemma2"}, {}.__getitem__, [[1]])
