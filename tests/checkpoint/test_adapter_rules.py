"""Adapters that do not fit their base, or do nothing to it: told by rule, and merged into whole weights by a repair."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hermetiq.chat.inspect import inspect
from hermetiq.checkpoint import open_checkpoint
from hermetiq.errors import Refusal
from hermetiq.repair import repair
from tests.checkpoint.test_adapter import EMBEDDING, GROWN, HEAD, QUERY, train
from tests.fixtures.models import tiny_checkpoint
from tests.repair.test_repair import contents, document

FACTORS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    sizes: dict[str, Any] = {"hidden": 32, "intermediate": 48, "tokenizer": "bpe"}
    return {
        "untied": tiny_checkpoint(root / "untied", family="llama", **sizes),
        "tied": tiny_checkpoint(root / "tied", family="qwen2", tied=True, **sizes),
    }


def rules_of(base: Path, adapter: Path) -> dict[str, str]:
    return {item.rule: item.severity for item in inspect(str(base), adapter=str(adapter)).findings}


def test_an_adapter_that_was_never_trained_is_told(bases: Mapping[str, Path], tmp_path: Path) -> None:
    train(bases["untied"], tmp_path / "lora", target_modules=["q_proj"], r=4)
    assert "no-delta" not in rules_of(bases["untied"], tmp_path / "lora")
    factors = load_file(tmp_path / "lora" / FACTORS)
    for name in factors:
        if "lora_B" in name:
            factors[name] = torch.zeros_like(factors[name])
    save_file(factors, tmp_path / "lora" / FACTORS)
    assert rules_of(bases["untied"], tmp_path / "lora")["no-delta"] == "error"


def test_a_whole_weight_that_is_the_bases_is_no_training(bases: Mapping[str, Path], tmp_path: Path) -> None:
    train(bases["untied"], tmp_path / "lora", target_modules=["q_proj"], modules_to_save=["lm_head"], r=4)
    factors = load_file(tmp_path / "lora" / FACTORS)
    kept = {name: torch.zeros_like(factor) for name, factor in factors.items() if "lora_" in name}
    head = next(name for name in factors if name.endswith(HEAD))
    save_file({**kept, head: load_file(bases["untied"] / "model.safetensors")[HEAD]}, tmp_path / "lora" / FACTORS)
    assert "no-delta" in rules_of(bases["untied"], tmp_path / "lora")
    save_file({**kept, head: factors[head]}, tmp_path / "lora" / FACTORS)
    assert "no-delta" not in rules_of(bases["untied"], tmp_path / "lora")


def test_rows_that_the_adapter_brings_are_told_and_others_are_refused(
    bases: Mapping[str, Path], tmp_path: Path
) -> None:
    train(bases["untied"], tmp_path / "whole", rows=810, **GROWN["both whole"])
    told = {item.rule: item for item in open_checkpoint(bases["untied"], adapter=tmp_path / "whole").findings}
    assert (told["adapter-vocab"].severity, told["adapter-vocab"].found) == ("info", "810 rows, for a base of 803")
    # Low-rank factors of a grown embedding, without the embedding that they belong to.
    train(bases["untied"], tmp_path / "factors", rows=810, target_modules=["q_proj", "embed_tokens"])
    factors = load_file(tmp_path / "factors" / FACTORS)
    bare = {n: t for n, t in factors.items() if "lora_" in n}
    save_file(bare, tmp_path / "factors" / FACTORS)
    with pytest.raises(Refusal) as refused:
        open_checkpoint(bases["untied"], adapter=tmp_path / "factors")
    (item,) = refused.value.findings
    assert (item.rule, item.found, item.expected) == (
        "adapter-vocab",
        "factors for 810 rows",
        "803 rows, as in the base",
    )


@pytest.mark.parametrize("base", ["untied", "tied"])
def test_a_repair_writes_the_merged_model(base: str, bases: Mapping[str, Path], tmp_path: Path) -> None:
    settings = {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    train(bases[base], tmp_path / "lora", **settings)
    result = repair(str(bases[base]), tmp_path / "out", adapter=str(tmp_path / "lora"))
    merged = open_checkpoint(bases[base], adapter=tmp_path / "lora")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == merged.tensors.keys()
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert all(torch.equal(tensor, merged.load(name).to(torch.bfloat16)) for name, tensor in written.items())
    assert not torch.equal(written[QUERY], load_file(bases[base] / "model.safetensors")[QUERY])
    # Embedding and head were trained apart, so they are two tensors from now on (U16).
    assert document(tmp_path / "out", "config.json")["tie_word_embeddings"] is False
    assert not torch.equal(written[EMBEDDING], written[HEAD])
    assert any("merged with lora" in change.new and "BF16" in change.new for change in result.changes)
    assert repair(str(tmp_path / "out"), tmp_path / "again").changes == ()
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
