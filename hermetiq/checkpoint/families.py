"""What `config.json` means for each family, because the files of years leave out what their library filled in.

Defaults and spellings are those of transformers' own configuration classes (`LlamaConfig`, `MistralConfig`,
`Qwen2Config`, `Qwen3Config`); a test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from hermetiq.errors import HermetiqError
from hermetiq.model import FAMILIES, ModelConfig

from .fields import Fields

_MOST_LAYERS = 1024
"""Far above any model; a larger number is a broken file, and would only fill memory with names."""


@dataclass(frozen=True)
class _Family:
    """What a family's configuration class assumes where the file is silent, and what its blocks are made of."""

    architecture: str
    rows: int
    intermediate: int
    context_length: int
    kv_heads: int | None = None
    """None: as many as there are heads."""
    head_dim: int | None = None
    """None: hidden / heads."""
    qkv_bias: bool | None = False
    """None: `attention_bias` of the file decides, for the output projection too."""
    has_mlp_bias: bool = False
    qk_norm: bool = False
    window: Literal["none", "always", "on request"] = "none"
    """Whether `sliding_window` is read: never, always, or only under `use_sliding_window`."""


_FAMILIES: Final[dict[Literal["llama", "mistral", "qwen2", "qwen3"], _Family]] = {
    "llama": _Family("LlamaForCausalLM", 32000, 11008, 2048, qkv_bias=None, has_mlp_bias=True),
    "mistral": _Family("MistralForCausalLM", 32000, 14336, 131072, kv_heads=8, window="always"),
    "qwen2": _Family("Qwen2ForCausalLM", 151936, 22016, 32768, kv_heads=32, qkv_bias=True, window="on request"),
    "qwen3": _Family(
        "Qwen3ForCausalLM",
        151936,
        22016,
        32768,
        kv_heads=32,
        head_dim=128,
        qkv_bias=None,
        qk_norm=True,
        window="on request",
    ),
}

ARCHITECTURES: Final[Mapping[str, str]] = {name: family.architecture for name, family in _FAMILIES.items()}
"""The class of each family's causal language model, as `config.json` names it."""

_FIXED: Final[dict[str, tuple[Any, ...]]] = {"hidden_act": ("silu", "swish"), "partial_rotary_factor": (1,)}
"""Keys of which the supported decoders know one value only."""


def parse_config(
    raw: Mapping[str, Any],
    *,
    file: str = "config.json",
) -> ModelConfig:
    """The decoder that a `config.json` describes, in one spelling.

    Both rope spellings are read: top-level `rope_theta` and `rope_scaling`, and the `rope_parameters` of
    transformers 5. Where both are present `rope_scaling` wins, as in transformers.

    Args:
        raw: the parsed file.
        file: its name, for messages.

    Raises:
        HermetiqError: another family or architecture than the supported ones, or a variant of one (another activation,
            partial rotary embedding).
        Refusal: `source-incomplete`, a value of a wrong type or size.
    """
    name = _family_of(raw, file)
    family = _FAMILIES[name]
    _require_plain_decoder(raw, file)
    fields = Fields(raw, file)
    hidden = fields.size("hidden_size", 4096)
    heads = fields.size("num_attention_heads", 32)
    if raw.get("head_dim", family.head_dim) is None and hidden % heads:
        fields.refuse("hidden_size", hidden, f"a multiple of num_attention_heads ({heads})")
    kv_heads = fields.size("num_key_value_heads", family.kv_heads or heads, null=heads)
    derived = hidden // heads if family.head_dim is None else None
    head_dim = fields.size("head_dim", family.head_dim or hidden // heads, null=derived)
    layers = fields.size("num_hidden_layers", 32)
    if layers > _MOST_LAYERS:
        fields.refuse("num_hidden_layers", layers, f"at most {_MOST_LAYERS}")
    if heads % kv_heads:
        fields.refuse("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads ({heads})")
    if head_dim % 2:
        fields.refuse("head_dim", head_dim, "an even number, as rotary embedding turns pairs")
    own_bias = fields.flag("attention_bias") if family.qkv_bias is None else False
    context_length = fields.size("max_position_embeddings", family.context_length)
    theta, scaling = _rope(fields, context_length)
    return ModelConfig(
        family=name,
        layers=layers,
        hidden=hidden,
        intermediate=fields.size("intermediate_size", family.intermediate),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rows=fields.size("vocab_size", family.rows),
        context_length=context_length,
        norm_eps=fields.positive("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied=fields.flag("tie_word_embeddings"),
        attention_bias=own_bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=own_bias,
        mlp_bias=family.has_mlp_bias and fields.flag("mlp_bias"),
        qk_norm=family.qk_norm,
        sliding_window=_window(fields, family),
    )


def _family_of(raw: Mapping[str, Any], file: str) -> Literal["llama", "mistral", "qwen2", "qwen3"]:
    kind, architectures = raw.get("model_type"), raw.get("architectures")
    for name, family in _FAMILIES.items():
        if kind == name and architectures in (None, [], [family.architecture]):
            return name
    found = ", ".join(
        f"{key} {value!r}" for key, value in (("model_type", kind), ("architectures", architectures)) if value
    )
    raise HermetiqError(
        f"{found or 'no model_type'} is not supported",
        where=file,
        remedy=f"hermetiq reads the causal language models of {', '.join(FAMILIES)}, dense",
    )


def _require_plain_decoder(raw: Mapping[str, Any], file: str) -> None:
    for key, values in _FIXED.items():
        if raw.get(key) is not None and raw[key] not in values:
            raise HermetiqError(
                f"{key} {raw[key]!r} is not supported", where=file, remedy=f"hermetiq reads {key} {values[0]!r} only"
            )


def _rope(fields: Fields, context_length: int) -> tuple[float, Mapping[str, Any] | None]:
    """Base and scaling of the rotary embedding, with transformers' order of precedence."""
    key = "rope_scaling" if fields.raw.get("rope_scaling") else "rope_parameters"
    stated = fields.mapping(key)
    _require_plain_decoder(stated, f"{fields.file}: {key}")
    if any(isinstance(value, Mapping) for value in stated.values()):
        raise HermetiqError("a rotary embedding for each kind of layer is not supported", where=f"{fields.file}: {key}")
    inner = Fields(stated, fields.file, prefix=f"{key}.")
    theta = inner.positive("rope_theta", 0.0) if "rope_theta" in stated else fields.positive("rope_theta", 10000.0)
    kind = stated.get("rope_type", stated.get("type", "default"))
    if not isinstance(kind, str):
        inner.refuse("rope_type", kind, "a name")
    if kind == "default":
        return theta, None
    scaling = {name: value for name, value in stated.items() if name not in ("rope_theta", "type")}
    scaling["rope_type"] = kind
    if kind in ("llama3", "yarn", "longrope"):
        scaling.setdefault("original_max_position_embeddings", context_length)
    return theta, scaling


def _window(fields: Fields, family: _Family) -> int | None:
    if family.window == "none" or (family.window == "on request" and not fields.flag("use_sliding_window")):
        return None
    if "sliding_window" in fields.raw and fields.raw["sliding_window"] is None:
        return None
    return fields.size("sliding_window", 4096)
