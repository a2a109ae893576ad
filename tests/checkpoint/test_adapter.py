"""Base + LoRA, against what peft makes of the same files."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from hermetiq.checkpoint.adapter import AdapterCheckpoint
from hermetiq.checkpoint.folder import FolderCheckpoint
from hermetiq.errors import HermetiqError, Refusal
from tests.fixtures.models import Family, copy_of, edit_json, tiny_checkpoint

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"
IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Float32, so that peft, which merges in the base's own type, is exact too."""
    root = tmp_path_factory.mktemp("bases")
    sizes: dict[str, Any] = {"hidden": 32, "intermediate": 48, "tokenizer": "bpe", "dtype": torch.float32}
    return {
        "untied": tiny_checkpoint(root / "untied", family="llama", **sizes),
        "tied": tiny_checkpoint(root / "tied", family="qwen2", tied=True, **sizes),
    }


@pytest.fixture
def adapter(bases: Mapping[str, Path], tmp_path: Path) -> Path:
    """An ordinary adapter of `bases["untied"]`, to break."""
    train(bases["untied"], tmp_path / "lora", target_modules=["q_proj"], r=4)
    return tmp_path / "lora"


@dataclass(frozen=True)
class Trained:
    logits: torch.Tensor
    """Of the adapted model, before any merge."""
    merged: dict[str, torch.Tensor]
    """What peft's own merge makes of it."""


def train(base: Path, folder: Path, *, rows: int | None = None, **settings: Any) -> Trained:
    """Give every weight of a new adapter a random value, as a training would, and save it as peft does."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        # peft warns of tied models, of embeddings and of fan_in_fan_out: just what is tested here.
        warnings.simplefilter("ignore")
        if rows is not None:
            model.resize_token_embeddings(rows, mean_resizing=False)
        peft = get_peft_model(model, LoraConfig(**settings))
        for parameter in peft.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        peft.save_pretrained(folder)
        logits = logits_of(peft)
        merged = peft.merge_and_unload()
    (folder / "README.md").unlink(missing_ok=True)
    return Trained(logits, {name: tensor.clone() for name, tensor in merged.state_dict().items()})


@torch.no_grad()
def logits_of(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    return model(IDS).logits.float()


def open_pair(base: Path, adapter: Path) -> AdapterCheckpoint:
    return AdapterCheckpoint(FolderCheckpoint(base), adapter)


def logits_after_merge(checkpoint: AdapterCheckpoint, folder: Path) -> torch.Tensor:
    """Save what the checkpoint says and let transformers run it."""
    folder.mkdir()
    save_file({n: checkpoint.load(n).contiguous() for n in checkpoint.tensors}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(checkpoint.config))
    return logits_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": LINEAR, "r": 4, "lora_alpha": 7},
    "rslora": {"target_modules": LINEAR, "r": 4, "lora_alpha": 7, "use_rslora": True},
    "patterns": {
        "target_modules": LINEAR,
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "down_proj": 3, r"layers\.1\..*_proj": 5},
        "alpha_pattern": {"q_proj": 32, r"^model.layers.1.mlp.up_proj": 3, "proj": 99},
    },
    "patterns of rslora": {"target_modules": LINEAR, "use_rslora": True, "rank_pattern": {"v_proj": 9}},
    "fan_in_fan_out": {"target_modules": ["q_proj"], "fan_in_fan_out": True},
    "one layer": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "regular expression": {"target_modules": r".*layers\.0\.mlp\..*_proj"},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"], "r": 3},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head"], "lora_alpha": 5},
    "embedding whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "head whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both whole": {"target_modules": LINEAR, "modules_to_save": ["embed_tokens", "lm_head"]},
    "a norm whole": {"target_modules": ["q_proj"], "modules_to_save": ["model.norm", "input_layernorm"]},
    "start that keeps the base": {"target_modules": LINEAR, "init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_merges_as_peft_does(bases: Mapping[str, Path], tmp_path: Path, variant: str) -> None:
    trained = train(bases["untied"], tmp_path / "lora", **VARIANTS[variant])
    checkpoint = open_pair(bases["untied"], tmp_path / "lora")
    base = FolderCheckpoint(bases["untied"])
    assert checkpoint.tensors.keys() == trained.merged.keys()
    changed = 0
    for name, theirs in trained.merged.items():
        ours = checkpoint.load(name)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        assert tuple(ours.shape) == checkpoint.tensors[name].shape
        changed += not torch.equal(ours, base.load(name))
    assert changed > 0
    assert checkpoint.findings == ()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_tied_base_becomes_the_model_that_was_trained(
    bases: Mapping[str, Path], tmp_path: Path, variant: str
) -> None:
    trained = train(bases["tied"], tmp_path / "lora", **VARIANTS[variant])
    checkpoint = open_pair(bases["tied"], tmp_path / "lora")
    assert checkpoint.model.tied == ("embedding" not in variant and "head" not in variant and "both" not in variant)
    assert (HEAD in checkpoint.tensors) != checkpoint.model.tied
    logits = logits_after_merge(checkpoint, tmp_path / "merged")
    torch.testing.assert_close(logits, trained.logits, rtol=1e-4, atol=1e-4)


def test_a_pair_trained_tied_stays_tied(bases: Mapping[str, Path], tmp_path: Path) -> None:
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    trained = train(bases["tied"], tmp_path / "lora", **settings)
    assert f"base_model.model.{HEAD}" in load_file(tmp_path / "lora/adapter_model.safetensors")
    checkpoint = open_pair(bases["tied"], tmp_path / "lora")
    assert checkpoint.model.tied
    assert HEAD not in checkpoint.tensors
    torch.testing.assert_close(logits_after_merge(checkpoint, tmp_path / "merged"), trained.logits)


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_other_families(tmp_path: Path, family: Family) -> None:
    base = tiny_checkpoint(tmp_path / "base", family=family, hidden=32, tokenizer="bpe", dtype=torch.float32)
    trained = train(base, tmp_path / "lora", target_modules=LINEAR)
    checkpoint = open_pair(base, tmp_path / "lora")
    for name, theirs in trained.merged.items():
        torch.testing.assert_close(checkpoint.load(name), theirs, rtol=0, atol=1e-6)


def test_merging_is_in_float32_and_touches_nothing_else(
    bases: Mapping[str, Path], tmp_path: Path, adapter: Path
) -> None:
    base = copy_of(bases["untied"], tmp_path / "half")
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(base / "model.safetensors").items()}
    (base / "model.safetensors").unlink()
    save_file(weights, base / "model.safetensors")
    checkpoint = open_pair(base, adapter)
    factors = load_file(adapter / "adapter_model.safetensors")
    module = "base_model.model." + QUERY.removesuffix(".weight")
    delta = factors[f"{module}.lora_B.weight"].double() @ factors[f"{module}.lora_A.weight"].double() * 8 / 4
    merged = checkpoint.load(QUERY)
    assert merged.dtype == torch.float32
    assert checkpoint.tensors[QUERY].dtype == "F32"
    torch.testing.assert_close(merged.double(), weights[QUERY].double() + delta, rtol=0, atol=1e-6)
    assert checkpoint.load(EMBEDDING).dtype == torch.bfloat16
    assert torch.equal(checkpoint.load(EMBEDDING), weights[EMBEDDING])
    with pytest.raises(KeyError):
        checkpoint.load("no.such.tensor")


GROWN: dict[str, dict[str, Any]] = {
    "both whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "neither": {"target_modules": ["q_proj"]},
    "both low-rank": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "embedding whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "embedding whole and tied": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
}


@pytest.mark.parametrize("settings", GROWN)
@pytest.mark.parametrize("base", ["untied", "tied"])
def test_a_grown_vocabulary_is_taken_over(bases: Mapping[str, Path], tmp_path: Path, base: str, settings: str) -> None:
    trained = train(bases[base], tmp_path / "lora", rows=810, **GROWN[settings])
    checkpoint = open_pair(bases[base], tmp_path / "lora")
    assert checkpoint.model.rows == 810
    assert checkpoint.documents["config.json"]["vocab_size"] == 810
    assert checkpoint.model.tied == (base == "tied" and settings in ("neither", "embedding whole and tied"))
    logits = logits_after_merge(checkpoint, tmp_path / "merged")
    torch.testing.assert_close(logits, trained.logits, rtol=1e-4, atol=1e-4)


def test_half_a_grown_vocabulary_is_refused(bases: Mapping[str, Path], tmp_path: Path) -> None:
    train(bases["untied"], tmp_path / "lora", rows=810, **GROWN["embedding whole"])
    weights = load_file(tmp_path / "lora/adapter_model.safetensors")
    del weights[f"base_model.model.{HEAD}"]
    save_file(weights, tmp_path / "lora/adapter_model.safetensors")
    with pytest.raises(Refusal, match=r"adapter-vocab: .*810 rows, lm_head.weight of 803 rows"):
        open_pair(bases["untied"], tmp_path / "lora")


def test_a_merge_leaves_the_bases_tensor_alone(
    adapter: Path, bases: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = FolderCheckpoint(bases["untied"])
    kept = base.load(QUERY)
    before = kept.clone()
    monkeypatch.setattr(base, "load", lambda name: kept)
    assert not torch.equal(AdapterCheckpoint(base, adapter).load(QUERY), before)
    assert torch.equal(kept, before)


def test_an_adapter_of_another_size_is_refused(adapter: Path, bases: Mapping[str, Path], tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "wide", family="llama", hidden=64, tokenizer="bpe")
    with pytest.raises(Refusal, match="q_proj: source-incomplete: found factors"):
        open_pair(base, adapter)


def test_the_adapters_tokenizer_is_the_trained_one(adapter: Path, bases: Mapping[str, Path]) -> None:
    plain = open_pair(bases["untied"], adapter)
    assert plain.provenance.tokenizer is None
    assert plain.templates == FolderCheckpoint(bases["untied"]).templates
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(bases["untied"] / name, adapter / name)
    edit_json(adapter / "tokenizer_config.json", eos_token="<|endoftext|>", chat_template="T")
    checkpoint = open_pair(bases["untied"], adapter)
    assert checkpoint.tokenizer.eos_token == "<|endoftext|>"
    assert checkpoint.templates == {"tokenizer_config.json": "T"}
    assert checkpoint.documents["tokenizer_config.json"]["chat_template"] == "T"
    assert checkpoint.provenance.tokenizer == "lora"
    # The base's other tokenizer files speak of another tokenizer.
    assert "special_tokens_map.json" not in checkpoint.documents
    assert "generation_config.json" in checkpoint.documents


def test_provenance(adapter: Path, bases: Mapping[str, Path]) -> None:
    provenance = open_pair(bases["untied"], adapter).provenance
    assert (provenance.name, provenance.adapter, provenance.base_models) == ("untied-lora", "lora", ())
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="org/base")
    assert open_pair(bases["untied"], adapter).provenance.base_models == ("org/base",)
    (adapter / "README.md").write_text("---\nlicense: mit\nbase_model: a/b\n---\n")
    provenance = open_pair(bases["untied"], adapter).provenance
    assert (provenance.license, provenance.base_models) == ("mit", ("a/b",))


def test_fingerprint_covers_base_and_adapter(adapter: Path, bases: Mapping[str, Path], tmp_path: Path) -> None:
    first = open_pair(bases["untied"], adapter).fingerprint()
    assert first == open_pair(bases["untied"], adapter).fingerprint()
    edit_json(adapter / "adapter_config.json", lora_alpha=9)
    second = open_pair(bases["untied"], adapter).fingerprint()
    base = copy_of(bases["untied"], tmp_path / "other")
    edit_json(base / "config.json", rms_norm_eps=1e-4)
    assert len({first, second, open_pair(base, adapter).fingerprint()}) == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("peft_type", "LOHA"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", []),
        ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [1, 2]),
        ("target_parameters", ["x"]),
        ("alora_invocation_tokens", [1]),
        ("use_qalora", True),
        ("a_feature_of_next_year", {"x": 1}),
    ],
)
def test_features_without_a_merge_are_refused_by_name(
    adapter: Path, bases: Mapping[str, Path], key: str, value: object
) -> None:
    edit_json(adapter / "adapter_config.json", **{key: value})
    with pytest.raises(HermetiqError, match=key):
        open_pair(bases["untied"], adapter)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", "4"),
        ("r", 5),
        ("lora_alpha", None),
        ("rank_pattern", {"q_proj": "2"}),
        ("rank_pattern", {"q_proj": 2}),
        ("rank_pattern", []),
        ("alpha_pattern", {"(": 1}),
        ("alpha_pattern", {"a{99999999999}": 1}),
        ("alpha_pattern", {"(a+)+b": 1}),
        ("alpha_pattern", {"(?=a)b": 1}),
        ("alpha_pattern", {r"(.)\1": 1}),
        ("alpha_pattern", {".*" * 4: 1}),
        ("alpha_pattern", {"[" * 100_000: 1}),
        ("alpha_pattern", {f"{number}.*": 1 for number in range(65)}),
        ("alpha_pattern", {str(number): 1 for number in range(4097)}),
        ("use_rslora", "yes"),
        ("target_modules", ["q_proj", "v_proj"]),
        ("modules_to_save", ["lm_head"]),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights(
    adapter: Path, bases: Mapping[str, Path], key: str, value: object
) -> None:
    edit_json(adapter / "adapter_config.json", **{key: value})
    with pytest.raises(Refusal, match="source-incomplete"):
        open_pair(bases["untied"], adapter)


@pytest.mark.parametrize(
    "own",
    [
        "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.model.layers.0.self_attn.q_proj.bias",
        QUERY,
        "x",
    ],
)
def test_weights_without_a_place_are_refused(adapter: Path, bases: Mapping[str, Path], own: str) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({**weights, own: torch.ones(4, 32)}, adapter / "adapter_model.safetensors")
    with pytest.raises(Refusal, match=own):
        open_pair(bases["untied"], adapter)


def test_half_a_pair_is_refused(adapter: Path, bases: Mapping[str, Path]) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    del weights[next(name for name in weights if "lora_B" in name)]
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(Refusal, match="whole pairs"):
        open_pair(bases["untied"], adapter)


def test_two_whole_weights_for_one_are_refused(adapter: Path, bases: Mapping[str, Path]) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    for own in (f"base_model.model.{HEAD}", "base_model.model.lm_head.base_layer.weight"):
        weights[own] = torch.ones(803, 32)
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(Refusal, match=r"no place in the base for base_model\.model\.lm_head"):
        open_pair(bases["untied"], adapter)


def test_factors_for_a_norm_are_refused(adapter: Path, bases: Mapping[str, Path]) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    for letter in "AB":
        weights[f"base_model.model.model.norm.lora_{letter}.weight"] = torch.ones(4, 4)
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(Refusal, match=r"model\.norm"):
        open_pair(bases["untied"], adapter)


def test_quantized_factors_are_refused(adapter: Path, bases: Mapping[str, Path]) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({n: t.to(torch.int8) for n, t in weights.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(Refusal, match="source-quantized"):
        open_pair(bases["untied"], adapter)


def test_broken_files_are_refused(adapter: Path, bases: Mapping[str, Path]) -> None:
    weights = adapter / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(Refusal, match=r"adapter_model\.safetensors"):
        open_pair(bases["untied"], adapter)
    weights.rename(adapter / "adapter_model.bin")
    with pytest.raises(Refusal, match="pickled"):
        open_pair(bases["untied"], adapter)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(Refusal, match=r"adapter_config\.json"):
        open_pair(bases["untied"], adapter)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(Refusal, match="no such file"):
        open_pair(bases["untied"], adapter)


def test_remote_code_of_an_adapters_tokenizer_is_refused(adapter: Path, bases: Mapping[str, Path]) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(bases["untied"] / name, adapter / name)
    edit_json(adapter / "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]})
    with pytest.raises(Refusal, match="remote-code"):
        open_pair(bases["untied"], adapter)
