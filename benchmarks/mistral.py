"""A checkpoint of Mistral-7B's shape with the real Mistral tokenizer: `python -m benchmarks.mistral FOLDER`.

Weights are random but of real size and type; they are written in shards of a few blocks, so that shallower models are
links to the first shards and cost no disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.fixtures.models import config_document, model_config
from tests.fixtures.tokenizers import hermes_tokenizer

BLOCKS = 4
"""Decoder blocks in a shard: 1.7 GB at full width."""
POOL = 16_777_213
"""Random numbers that all tensors share; a prime, so that no two rows of a tensor are equal."""
FULL: Mapping[str, Any] = {"hidden": 4096, "intermediate": 14336, "heads": 32, "kv_heads": 8}
SMALL: Mapping[str, Any] = {"hidden": 1024, "intermediate": 3584, "heads": 8, "kv_heads": 2}


def make(folder: Path, layers: list[int], *, small: bool) -> None:
    """Write `folder/LAYERS` for each number of layers; the deepest holds the data, the others link to it."""
    deepest = max(layers)
    parts = {name: folder / "parts" / f"{name}.safetensors" for name in ("outer", *_blocks(deepest))}
    (folder / "parts").mkdir(parents=True)
    shapes = model_config(_config(deepest, small=small)).expected_tensors()
    pool = (torch.randn(POOL, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)
    for part, path in parts.items():
        inside = {name: shape for name, shape in shapes.items() if _part(name) == part}
        save_file({name: _weights(pool, name, shape) for name, shape in inside.items()}, path)
    for depth in layers:
        _assemble(folder / str(depth), depth, parts, small=small)
    shutil.rmtree(folder / "parts")


def _assemble(target: Path, layers: int, parts: dict[str, Path], *, small: bool) -> None:
    """A checkpoint folder of so many layers, its shards linked."""
    target.mkdir()
    for file in hermes_tokenizer().folder.iterdir():
        shutil.copyfile(file, target / file.name)
    config = _config(layers, small=small)
    (target / "config.json").write_text(json.dumps(config))
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": config["eos_token_id"]}))
    used = ["outer", *_blocks(layers)]
    shards = {part: f"model-{number + 1:05d}-of-{len(used):05d}.safetensors" for number, part in enumerate(used)}
    for part, shard in shards.items():
        os.link(parts[part], target / shard)
    located = {name: shards[_part(name)] for name in model_config(config).expected_tensors()}
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": located}))


def _config(layers: int, *, small: bool) -> dict[str, Any]:
    files = hermes_tokenizer()
    sizes = SMALL if small else FULL
    return config_document(files, family="mistral", layers=layers, tied=False, rows=files.tokens, **sizes)


def _blocks(layers: int) -> list[str]:
    return [str(first) for first in range(0, layers, BLOCKS)]


def _part(name: str) -> str:
    """The shard a tensor belongs to."""
    words = name.split(".")
    return str(int(words[2]) // BLOCKS * BLOCKS) if words[1] == "layers" else "outer"


def _weights(pool: torch.Tensor, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Normal numbers from one pool, each tensor from a place of its own: drawing billions anew would take minutes."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    count = shape[0] * shape[1]
    start = sum(name.encode()) * 7919 % len(pool)
    repeats = -(-(start + count) // len(pool))
    return pool.repeat(repeats)[start : start + count].reshape(shape).contiguous()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[32])
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    make(arguments.folder, arguments.layers, small=arguments.small)
