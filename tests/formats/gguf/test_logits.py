"""An F32 file computes in llama.cpp what transformers computes: row order, biases, q/k norms, rotary scaling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from hermetiq.model import ModelConfig
from tests.formats.gguf.small import CONFIG, random_weights, write_file
from tests.oracles import gguf_llama_cpp

TINY = replace(CONFIG, layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, head_dim=16)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
MODELS: dict[str, ModelConfig] = {
    "llama": TINY,
    "llama, every bias": replace(TINY, attention_bias=True, output_bias=True, mlp_bias=True),
    "llama, wide heads": replace(TINY, head_dim=32),
    "mistral, sliding window": replace(TINY, family="mistral", sliding_window=256),
    "qwen2, tied": replace(TINY, family="qwen2", attention_bias=True, tied=True, rope_theta=1e6),
    "qwen3": replace(TINY, family="qwen3", qk_norm=True, head_dim=32),
    "linear": replace(TINY, rope_scaling={"type": "linear", "factor": 4.0}),
    "yarn": replace(TINY, rope_scaling=YARN, context_length=256),
    "yarn, qwen2": replace(TINY, family="qwen2", attention_bias=True, rope_scaling=YARN, context_length=256),
    "llama3": replace(TINY, rope_scaling=LLAMA3),
}
CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    config = MODELS[name]
    weights = random_weights(config)
    tokens = torch.randint(0, config.rows, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    expected = reference(config, weights)(torch.tensor([tokens])).logits[0].numpy()
    found = gguf_llama_cpp.logits(write_file(tmp_path / "F32.gguf", config, "F32", weights), tokens)
    # Logits have a deviation of about 1; a wrong order of rows moves them by as much.
    assert np.abs(found - expected).max() < 2e-3
    assert (found.argmax(1) == expected.argmax(1)).all()


def reference(config: ModelConfig, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The same model in transformers."""
    make_config, make_model = CLASSES[config.family]
    extra = {"attention_bias": config.attention_bias} if config.family in ("llama", "qwen3") else {}
    extra |= {"mlp_bias": config.mlp_bias} if config.family == "llama" else {}
    extra |= {"sliding_window": config.sliding_window} if config.family == "mistral" else {}
    model = make_model(
        make_config(
            vocab_size=config.rows,
            hidden_size=config.hidden,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.context_length,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tied,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta, **_spelled(config)},
            attn_implementation="eager",
            **extra,
        )
    )
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return torch.inference_mode()(model.eval())


def _spelled(config: ModelConfig) -> dict[str, object]:
    fields = dict(config.rope_scaling or {})
    return {"rope_type": fields.pop("type"), **fields} if "type" in fields else fields
