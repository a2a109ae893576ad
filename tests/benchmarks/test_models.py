"""The models that benchmarks compare on: each says what it claims to say, so a change of figures is not theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import models
from hermetiq.calibration import walk
from hermetiq.checkpoint import Checkpoint, open_checkpoint
from hermetiq.formats.gguf.names import gguf_names
from tests.fixtures.models import tiny_checkpoint

ROWS = ([1, 5, 9, 200, 31], [1, 7, 7, 300, 12, 40, 2])


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("narrow") / "model"
    sizes = {"hidden": 48, "intermediate": 96, "heads": 6, "kv_heads": 3, "layers": 2}
    # Weights of deviation 0.02 would leave every block's output near zero, and hide what is wrong with it.
    tiny_checkpoint(folder, family="llama", dtype=torch.float32, tied=True, config={"head_dim": 8}, **sizes)
    return open_checkpoint(folder)


@pytest.fixture
def weights(narrow: Checkpoint) -> dict[str, Tensor]:
    large = {name: narrow.load(name) for name in narrow.tensors}
    return {name: weight * 10 if weight.dim() == 2 else weight for name, weight in large.items()}


def logits(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Tensor:
    states = walk.final_hidden(config, weights.__getitem__, ROWS)
    return walk.head(config, weights.__getitem__)(torch.cat(states))


def test_scaled_is_the_same_function_of_other_weights(narrow: Checkpoint, weights: dict[str, Tensor]) -> None:
    before = {name: weight.clone() for name, weight in weights.items()}
    moved = models.scaled(narrow.model, weights, torch.Generator().manual_seed(0))
    assert all(torch.equal(weights[name], before[name]) for name in before)
    torch.testing.assert_close(logits(narrow.config, moved), logits(narrow.config, weights), rtol=1e-4, atol=1e-4)
    same = [name for name in weights if torch.equal(moved[name], weights[name])]
    assert same == ["model.embed_tokens.weight", "model.norm.weight"]


def test_padded_is_the_same_function_with_a_third_more_channels(narrow: Checkpoint, weights: dict[str, Tensor]) -> None:
    changes, wide = models.padded(narrow.model, weights)
    config = {**narrow.config, **changes}
    assert (config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]) == (64, 8, 4)
    torch.testing.assert_close(logits(config, wide), logits(narrow.config, weights), rtol=1e-4, atol=1e-4)
    assert not wide["model.layers.0.mlp.up_proj.weight"][:, 3::4].any()


def test_dither_stays_within_half_a_step(weights: dict[str, Tensor]) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    steps = {name: torch.full_like(weights[name], 0.25)}
    moved = models.dithered(weights, steps, torch.Generator().manual_seed(0))
    noise = moved[name] - weights[name]
    assert 0.124 < noise.abs().max() <= 0.125
    assert noise.mean().abs() < 0.01
    assert all(moved[other] is weights[other] for other in weights if other != name)


def test_grid_steps_are_those_of_the_blocks_in_their_rows(narrow: Checkpoint, tmp_path: Path) -> None:
    # Rows as long as a block need no thought about columns; q is the one whose rows a GGUF re-orders.
    name, rows = "model.layers.0.self_attn.q_proj.weight", 48
    stored = gguf_names(narrow.model)[name]
    path = tmp_path / "one.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    step = np.arange(1, rows + 1, dtype=np.float32) / 64
    values = step[:, None] * (np.arange(32) % 16)[None]
    writer.add_tensor(
        stored, gguf.quantize(values, gguf.GGMLQuantizationType.Q4_1), raw_dtype=gguf.GGMLQuantizationType.Q4_1
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (found,) = models.grid_steps(path, narrow.model).values()
    first_head = [1, 3, 5, 7, 2, 4, 6, 8]
    assert (found[:8] * 64).round().tolist() == [[row] * 32 for row in first_head]


def test_written_folder_is_a_model(narrow: Checkpoint, weights: dict[str, Tensor], tmp_path: Path) -> None:
    models.write(tmp_path / "out", narrow, models.Variant({}, weights))
    again = open_checkpoint(tmp_path / "out")
    assert again.model == narrow.model
    assert again.tokenizer.encode("12 <|im_end|>") == narrow.tokenizer.encode("12 <|im_end|>")
    assert again.templates["chat_template.jinja"] in narrow.templates.values()
    assert torch.equal(again.load("model.norm.weight"), weights["model.norm.weight"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == config["dtype"] == "float32"
