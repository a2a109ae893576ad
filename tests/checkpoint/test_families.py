"""`config.json` by family, held against the configuration classes of transformers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from hermetiq.checkpoint.families import parse_config
from hermetiq.errors import HermetiqError, Refusal
from hermetiq.model import FAMILIES, ModelConfig

CLASSES = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
FILES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "small": {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3},
    "null head_dim": {"head_dim": None, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
    "own head_dim": {"head_dim": 32},
    "null kv": {"num_key_value_heads": None, "num_attention_heads": 8},
    "window off": {"sliding_window": None},
    "window": {"sliding_window": 1024},
    "window on request": {"use_sliding_window": True, "sliding_window": 1024},
    "window on request, size by default": {"use_sliding_window": True},
    "tied": {"tie_word_embeddings": True},
    "sizes": {"vocab_size": 99, "intermediate_size": 77, "max_position_embeddings": 123, "rms_norm_eps": 1e-5},
    "old theta": {"rope_theta": 500000.0},
    "whole theta": {"rope_theta": 1000000},
    "null scaling": {"rope_theta": 500000.0, "rope_scaling": None},
    "old scaling": {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "oldest scaling": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "new theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "new scaling": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
    "both": {"rope_theta": 7.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "old wins": {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 5e5}},
    "default scaling": {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
    "yarn": {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 64},
}
REFUSED_THERE = {("qwen3", "null head_dim"), ("mistral", "null kv")}
"""Files that the present classes of transformers do not take."""


@pytest.mark.parametrize(
    ("family", "case"),
    [(family, case) for family in FAMILIES for case in FILES if (family, case) not in REFUSED_THERE],
)
def test_reads_a_file_as_transformers_does(family: str, case: str) -> None:
    raw = {"model_type": family, **FILES[case]}
    # transformers writes into what it is given.
    theirs = CLASSES[family](**json.loads(json.dumps(FILES[case])))
    ours = parse_config(raw)
    rope = dict(theirs.rope_parameters)
    theta, kind = rope.pop("rope_theta"), rope["rope_type"]
    rope.pop("type", None)
    assert ours == ModelConfig(
        family=family,
        layers=theirs.num_hidden_layers,
        hidden=theirs.hidden_size,
        intermediate=theirs.intermediate_size,
        heads=theirs.num_attention_heads,
        kv_heads=theirs.num_key_value_heads,
        head_dim=getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads,
        rows=theirs.vocab_size,
        context_length=theirs.max_position_embeddings,
        norm_eps=theirs.rms_norm_eps,
        rope_theta=theta,
        rope_scaling=None if kind == "default" else rope,
        tied=theirs.tie_word_embeddings,
        attention_bias=family == "qwen2",
        output_bias=False,
        mlp_bias=False,
        qk_norm=family == "qwen3",
        # Llama has no window; its class keeps the stray key.
        sliding_window=None if family == "llama" else theirs.sliding_window,
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("extra", [{}, {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}])
def test_expects_the_tensors_that_transformers_builds(family: str, extra: dict[str, Any]) -> None:
    raw = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 40,
        "head_dim": 8,
        **extra,
    }
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CLASSES[family](**raw))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert parse_config({"model_type": family, **raw}).expected_tensors() == shapes


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"model_type": "gemma"},
        {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]},
        {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
        {"model_type": "llama", "architectures": "LlamaForCausalLM"},
        {"model_type": ["llama"]},
        {"model_type": None, "architectures": ["GPT2LMHeadModel"]},
    ],
)
def test_refuses_other_models_with_the_list(raw: dict[str, Any]) -> None:
    with pytest.raises(HermetiqError, match="llama, mistral, qwen2, qwen3"):
        parse_config(raw)


@pytest.mark.parametrize(
    "extra",
    [
        {"hidden_act": "gelu"},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
    ],
)
def test_refuses_variants_it_would_get_wrong(extra: dict[str, Any]) -> None:
    with pytest.raises(HermetiqError, match="not supported"):
        parse_config({"model_type": "llama", **extra})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "4096"),
        ("hidden_size", 4096.0),
        ("hidden_size", None),
        ("hidden_size", 63),
        ("num_hidden_layers", True),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 10**12),
        ("num_hidden_layers", 100_000),
        ("num_attention_heads", []),
        ("num_key_value_heads", 7),
        ("head_dim", 33),
        ("vocab_size", -1),
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", {}),
        ("rope_theta", 10**400),
        ("rope_scaling", "linear"),
        ("rope_scaling", {"type": 3}),
        ("rope_parameters", [1]),
        ("rope_parameters", {"rope_theta": "x"}),
        ("tie_word_embeddings", "false"),
        ("attention_bias", 1),
        ("max_position_embeddings", None),
    ],
)
def test_a_value_of_a_wrong_kind_is_a_finding(key: str, value: Any) -> None:
    with pytest.raises(Refusal) as refusal:
        parse_config({"model_type": "llama", key: value})
    (finding,) = refusal.value.findings
    assert finding.rule == "source-incomplete"
    assert finding.file == "config.json"
    assert finding.field.startswith(key)
