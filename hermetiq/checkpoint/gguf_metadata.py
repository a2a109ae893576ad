"""What the metadata of a GGUF means: a `config.json`, a vocabulary, special ids and the model's origin.

Keys as in `docs/gguf.md` of the ggml project. Where a key is absent, what llama.cpp assumes is assumed here, because
that is what every runtime of the file does.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose
from typing import Any, Final

import numpy as np
from gguf import Keys

from hermetiq.errors import HermetiqError, Refusal
from hermetiq.formats.gguf import rope
from hermetiq.model import SpecialIds, Token, TokenKind, Vocabulary

from .base import Provenance
from .documents import file_name, incomplete
from .families import ARCHITECTURES, parse_config
from .fields import Fields
from .pretokenizer_table import PRE_TOKENIZERS

_ARCHITECTURES: Final = ("llama", "qwen2", "qwen3")
_REQUIRED: Final = {
    "hidden_size": Keys.LLM.EMBEDDING_LENGTH,
    "intermediate_size": Keys.LLM.FEED_FORWARD_LENGTH,
    "num_hidden_layers": Keys.LLM.BLOCK_COUNT,
    "num_attention_heads": Keys.Attention.HEAD_COUNT,
    "max_position_embeddings": Keys.LLM.CONTEXT_LENGTH,
    "rms_norm_eps": Keys.Attention.LAYERNORM_RMS_EPS,
}
_LLAMA3: Final = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The parameters of every published Llama 3.x; a GGUF keeps only the factors that follow from them."""
_KINDS: Final = frozenset(TokenKind)


def restored_config(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    factors: np.ndarray[Any, Any] | None,  # (head_dim / 2,)
    file: str,
) -> dict[str, Any]:
    """A `config.json` for the model, both rope spellings included.

    Args:
        shapes: of the file's tensors by their GGUF names, outermost dimension first.
        factors: the tensor `rope_freqs.weight`, if there is one.
        file: the file's name, for messages.

    Raises:
        HermetiqError: an architecture or a variant of one that hermetiq does not read.
        Refusal: `source-incomplete`, a key is missing or of another type.
    """
    arch = metadata.get(Keys.General.ARCHITECTURE)
    if metadata.get(Keys.General.TYPE, "model") != "model" or arch not in _ARCHITECTURES:
        kind = metadata.get(Keys.General.TYPE, "model")
        raise HermetiqError(
            f"a GGUF of type {kind!r} and architecture {arch!r} is not supported",
            where=file,
            remedy=f"hermetiq reads models of {', '.join(_ARCHITECTURES)}, dense",
        )
    fields = Fields({key: _uniform(value) for key, value in metadata.items()}, file)
    keys = {name: key.format(arch=arch) for name, key in _REQUIRED.items()}
    absent = [key for key in keys.values() if key not in metadata]
    if absent:
        raise _refusal(file, absent[0], "no such key", "the shape of the model")
    sizes = {name: fields.size(key, 0) for name, key in keys.items() if name != "rms_norm_eps"}
    embedding = shapes.get("token_embd.weight", ())
    if len(embedding) != 2:
        raise Refusal(incomplete(file, field="token_embd.weight", found="no such matrix", expected="an embedding"))
    heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
    head_dim = fields.size(Keys.Attention.KEY_LENGTH.format(arch=arch), max(1, hidden // heads))
    _require_plain(fields, arch, head_dim)
    family = "mistral" if arch == "llama" and Keys.Attention.SLIDING_WINDOW.format(arch=arch) in metadata else arch
    config = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        **sizes,
        "num_key_value_heads": fields.size(Keys.Attention.HEAD_COUNT_KV.format(arch=arch), heads),
        "head_dim": head_dim,
        "vocab_size": embedding[0],
        "rms_norm_eps": _shortest(fields.positive(keys["rms_norm_eps"], 0.0)),
        "hidden_act": "silu",
        "attention_bias": any(name.endswith(("attn_q.bias", "attn_output.bias")) for name in shapes),
        "mlp_bias": any(name.endswith("ffn_down.bias") for name in shapes),
        "tie_word_embeddings": "output.weight" not in shapes,
        **_window(fields, arch),
    }
    config |= _rope(fields, arch, config, factors)
    return config


def restored_vocabulary(metadata: Mapping[str, Any], file: str) -> Vocabulary:
    """The tokenizer's tokens, merges and pre-tokenizer name.

    Raises:
        Refusal: `source-incomplete`, a list is missing, of another type or too short, or the tokenizer is no BPE.
    """
    keys = Keys.Tokenizer
    model = metadata.get(keys.MODEL)
    if model not in ("llama", "gpt2"):
        raise _refusal(file, keys.MODEL, repr(model), "llama (SentencePiece) or gpt2 (byte-level BPE)")
    texts = _list(metadata, keys.LIST, str, file)
    kinds = _list(metadata, keys.TOKEN_TYPE, int, file, len(texts))
    scores = _list(metadata, keys.SCORES, float, file, len(texts)) if model == "llama" else [0.0] * len(texts)
    tokens = tuple(
        # llama.cpp names an empty text so, too.
        Token(text or f"[EMPTY_{index}]", TokenKind(kind) if kind in _KINDS else TokenKind.NORMAL, score)
        for index, (text, kind, score) in enumerate(zip(texts, kinds, scores, strict=False))
    )
    return Vocabulary(
        model=model,
        pre="default" if model == "llama" else str(metadata.get(keys.PRE, "")),
        tokens=tokens,
        merges=tuple(_list(metadata, keys.MERGES, str, file)) if model == "gpt2" else (),
        add_space_prefix=model == "llama" and bool(metadata.get(keys.ADD_PREFIX, True)),
    )


def restored_ids(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> SpecialIds:
    """The special ids; where a key is absent or outside the vocabulary, those that llama.cpp takes.

    For a byte-level vocabulary without an EOS key that is id 11, an ordinary token: a fault of the file that the
    contract must see, since every runtime of it does.
    """
    keys = Keys.Tokenizer
    sentencepiece = vocabulary.model == "llama"

    def stated(key: str, default: int | None = None) -> int | None:
        index = metadata.get(key)
        valid = isinstance(index, int) and not isinstance(index, bool) and 0 <= index < len(vocabulary.tokens)
        return index if valid else default

    entry = PRE_TOKENIZERS.get(vocabulary.pre)
    add_bos = bool(metadata.get(keys.ADD_BOS, sentencepiece or (entry is not None and entry.add_bos)))
    eos = stated(keys.EOS_ID)
    return SpecialIds(
        eos=(2 if sentencepiece else 11) if eos is None else eos,
        eot=stated(keys.EOT_ID),
        eom=stated(keys.EOM_ID),
        bos=stated(keys.BOS_ID, 1 if sentencepiece else 11 if add_bos else None),
        pad=stated(keys.PAD_ID),
        unk=stated(keys.UNK_ID, 0 if sentencepiece else None),
        add_bos=add_bos,
        add_eos=bool(metadata.get(keys.ADD_EOS, False)),
    )


def restored_provenance(metadata: Mapping[str, Any], fallback: str) -> Provenance:
    """Name, licence and parents; what is absent or of another type is left out, and the name is then `fallback`."""
    keys = Keys.General

    def text(key: str) -> str | None:
        value = metadata.get(key)
        return value.strip() or None if isinstance(value, str) else None

    count = metadata.get(keys.BASE_MODEL_COUNT, 0)
    parents = []
    for index in range(min(count, 64) if isinstance(count, int) else 0):
        organization, name = (
            text(key.format(id=index)) for key in (keys.BASE_MODEL_ORGANIZATION, keys.BASE_MODEL_NAME)
        )
        repository = (text(keys.BASE_MODEL_REPO_URL.format(id=index)) or "").rstrip("/").split("/")[-2:]
        if len(repository) == 2:
            parents.append("/".join(repository))
        elif name:
            parents.append(f"{organization}/{name}" if organization else name)
    return Provenance(
        name=file_name(text(keys.NAME) or fallback), license=text(keys.LICENSE), base_models=tuple(parents)
    )


def _uniform(value: Any) -> Any:
    """A value per layer, where all layers have the same, as that one value."""
    return value[0] if isinstance(value, list) and value and all(item == value[0] for item in value) else value


def _require_plain(fields: Fields, arch: str, head_dim: int) -> None:
    """Refuse what the dense decoders of the family do not have."""
    for key in (Keys.Attention.VALUE_LENGTH, Keys.Rope.DIMENSION_COUNT):
        found = fields.size(key.format(arch=arch), head_dim)
        if found != head_dim:
            fields.refuse(key.format(arch=arch), found, f"{head_dim}, the length of a head")
    experts = fields.raw.get(Keys.LLM.EXPERT_COUNT.format(arch=arch), 0)
    if experts:
        raise HermetiqError(
            f"a mixture of {experts} experts is not supported", where=fields.file, remedy="hermetiq reads dense models"
        )


def _window(fields: Fields, arch: str) -> dict[str, Any]:
    key = Keys.Attention.SLIDING_WINDOW.format(arch=arch)
    if key not in fields.raw:
        return {}
    return {"sliding_window": fields.size(key, 0), "use_sliding_window": True}


def _rope(fields: Fields, arch: str, config: Mapping[str, Any], factors: np.ndarray[Any, Any] | None) -> dict[str, Any]:
    """Base and scaling of the rotary embedding, spelled as transformers 4 and 5 do."""
    theta = _shortest(fields.positive(Keys.Rope.FREQ_BASE.format(arch=arch), 10000.0))
    scaling = _scaling(fields, arch)
    if factors is not None and not np.allclose(factors, 1.0):
        if scaling is not None:
            fields.refuse(rope.FACTORS, "factors beside another scaling", "one kind of rotary scaling")
        scaling = _llama3(fields, {**config, "rope_theta": theta}, factors)
    kind = scaling or {"rope_type": "default"}
    return {"rope_theta": theta, "rope_scaling": scaling, "rope_parameters": {"rope_theta": theta, **kind}}


def _scaling(fields: Fields, arch: str) -> dict[str, Any] | None:
    kind = fields.raw.get(Keys.Rope.SCALING_TYPE.format(arch=arch), "none")
    old = f"{arch}.rope.scale_linear"
    if kind == "none" and old in fields.raw:
        return {"rope_type": "linear", "factor": _shortest(fields.positive(old, 1.0))}
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        fields.refuse(Keys.Rope.SCALING_TYPE.format(arch=arch), kind, "linear or yarn")
    scaling = {"rope_type": kind, "factor": _shortest(fields.positive(Keys.Rope.SCALING_FACTOR.format(arch=arch), 1.0))}
    if kind == "yarn":
        original = Keys.Rope.SCALING_ORIG_CTX_LEN.format(arch=arch)
        if original in fields.raw:
            scaling["original_max_position_embeddings"] = fields.size(original, 1)
        for name in ("beta_fast", "beta_slow"):
            key = f"{arch}.rope.scaling.yarn_{name}"
            if key in fields.raw:
                scaling[name] = _shortest(fields.positive(key, 1.0))
    return scaling


def _llama3(fields: Fields, config: Mapping[str, Any], factors: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Llama 3's scaling, if the stored factors are the ones that follow from its parameters."""
    guess = {"rope_type": "llama3", "factor": _shortest(float(factors.max())), **_LLAMA3}
    expected = rope.factors(parse_config({**config, "rope_scaling": guess}, file=fields.file))
    stored = factors.tolist()
    if (
        expected is None
        or len(expected) != len(stored)
        or not all(isclose(a, b, rel_tol=1e-4) for a, b in zip(expected, stored, strict=True))
    ):
        fields.refuse(rope.FACTORS, stored, "the factors of Llama 3.1's rotary scaling")
    return guess


def _shortest(value: float) -> float:
    """The shortest decimal that is the same in single precision: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _list(metadata: Mapping[str, Any], key: str, kind: type, file: str, length: int = 0) -> list[Any]:
    values = metadata.get(key)
    if not isinstance(values, list) or not values or len(values) < length or not isinstance(values[0], kind):
        found = f"{len(values)} items" if isinstance(values, list) else repr(values)[:80]
        raise _refusal(file, key, found, f"a list of {kind.__name__}" + (f", {length} long" if length else ""))
    return values


def _refusal(file: str, field: str, found: str, expected: str) -> Refusal:
    return Refusal(incomplete(file, field=field, found=found, expected=expected))
