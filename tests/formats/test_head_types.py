"""What makes logits gets the better type by default, in every format: the head, and the embedding that is tied to it.

At four bits a small or tied model repeats itself when its head has no more than the rest (U43).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hermetiq.checkpoint import open_checkpoint
from hermetiq.formats import exl2_plan, linear_plan
from hermetiq.formats.gguf.recipe import BASE, bits_per_weight, choose
from hermetiq.model import EMBEDDING, HEAD, ModelConfig
from hermetiq.quantize.spec import GGUF_RECIPES, parse
from tests.fixtures.models import tiny_checkpoint


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("m") / "m", tokenizer="bpe", hidden=256, tied=request.param)
    return open_checkpoint(folder).model


@pytest.mark.parametrize("recipe", GGUF_RECIPES)
@pytest.mark.parametrize("columns", [256, 96], ids=["fits", "falls back"])
def test_gguf(model: ModelConfig, recipe: str, columns: int) -> None:
    name = "token_embd.weight" if model.tied else "output.weight"
    head = choose(recipe, replace(model, hidden=columns), name, (model.rows, columns)).type
    blocks = choose(recipe, model, "blk.0.ffn_gate.weight", (model.intermediate, 256)).type
    assert bits_per_weight(head) >= max(bits_per_weight(blocks), 6.5)
    assert head.name in {"Q6_K", "Q8_0", "F16", "BF16", "F32"}
    if bits_per_weight(BASE[recipe]) < 6:
        assert head.name == ("Q6_K" if columns == 256 else "Q8_0")


@pytest.mark.parametrize("spec", ["gptq:4bit-g64", "awq:4bit-g64"])
def test_folders_keep_sixteen_bits(model: ModelConfig, spec: str) -> None:
    dtypes = linear_plan.plan(model, parse(spec)).dtypes
    assert dtypes[EMBEDDING] == torch.float16
    assert dtypes.get(HEAD, dtypes[EMBEDDING]) == torch.float16
    assert dtypes["model.layers.0.mlp.gate_proj.qweight"] == torch.int32


@pytest.mark.parametrize(("spec", "bits"), [("exl2:3.0bpw", 6), ("exl2:3.0bpw-h8", 8)])
def test_exl2_gives_the_head_six_bits_or_eight_and_the_embedding_sixteen(
    model: ModelConfig, spec: str, bits: int
) -> None:
    planned = exl2_plan.plan(model, parse(spec))
    assert {width for width, _ in planned.head.groups(model.hidden)} == {bits}
    rungs = dict.fromkeys(linear_plan.linears(model), planned.head)
    assert exl2_plan.allocated(planned, rungs).dtypes[EMBEDDING] == torch.float16
