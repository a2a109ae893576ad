"""Everything a GGUF file says about its model besides the weights.

llama.cpp believes what a file states and guesses what it does not (an id 11 for a missing EOS, a space prefix, a
pre-tokenizer). So every key that a guess could replace is written, and what cannot be written truthfully is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from gguf import GGML_QUANT_VERSION, Keys
from gguf import GGUFValueType as Kind

from hermetiq.errors import Refusal
from hermetiq.model import ModelConfig, SpecialIds, Token, TokenKind, Vocabulary
from hermetiq.rules import finding

from . import rope
from .names import architecture
from .recipe import FILE_TYPE

Entry = tuple[str, Any, Kind]
"""Key, value and type of one line of metadata."""

PADDING_SCORE = -1000.0
"""Score of a padding token, below that of every piece that SentencePiece could choose."""


@dataclass(frozen=True)
class GgufHeader:
    """What the metadata is made from: the model's shape, its tokenizer, its contract and where it comes from."""

    model: ModelConfig
    vocabulary: Vocabulary
    ids: SpecialIds
    template: str | None
    name: str
    license: str | None = None
    base_models: tuple[str, ...] = ()
    """Hub ids or names of the models it was merged or tuned from."""


def entries(header: GgufHeader, recipe: str) -> tuple[Entry, ...]:
    """The metadata of one file, in writing order, `general.architecture` first.

    Raises:
        Refusal: `vocab-overflow`, `duplicate-token` or `pretokenizer-unknown`; llama.cpp would not load such a file.
        HermetiqError: rotary scaling that llama.cpp cannot compute.
    """
    found = (*_general(header, recipe), *_model(header.model), *_tokenizer(header))
    return tuple(entry for entry in found if entry[1] not in (None, "", ()))


def padded(vocabulary: Vocabulary, rows: int) -> tuple[Token, ...]:
    """The vocabulary with an UNUSED token for every row of the embedding that has none, each with a text of its own.

    Raises:
        Refusal: `vocab-overflow`, more tokens than rows; `duplicate-token`, two ids share a text.
    """
    tokens = vocabulary.tokens
    if len(tokens) > rows:
        raise Refusal(
            finding("vocab-overflow", file="tokenizer", found=f"{len(tokens)} tokens", expected=f"at most {rows} rows")
        )
    texts = Counter(token.text for token in tokens)
    twice = [id for id, token in enumerate(tokens) if texts[token.text] > 1]
    if twice:
        where = f"ids {', '.join(map(str, twice[:4]))}"
        raise Refusal(
            finding(
                "duplicate-token", file="tokenizer", field=where, found=tokens[twice[0]].text, expected="one id a text"
            )
        )
    padding = (Token(_unused(id, texts), TokenKind.UNUSED, PADDING_SCORE) for id in range(len(tokens), rows))
    return (*tokens, *padding)


def _unused(id: int, texts: Counter[str]) -> str:
    text = f"[PAD{id}]"
    while text in texts:
        text = f"[{text}]"
    return text


def _general(header: GgufHeader, recipe: str) -> Iterator[Entry]:
    keys = Keys.General
    yield keys.ARCHITECTURE, architecture(header.model), Kind.STRING
    yield keys.TYPE, "model", Kind.STRING
    yield keys.NAME, header.name, Kind.STRING
    yield keys.LICENSE, header.license, Kind.STRING
    yield keys.FILE_TYPE, FILE_TYPE[recipe], Kind.UINT32
    yield keys.QUANTIZATION_VERSION, GGML_QUANT_VERSION, Kind.UINT32
    if header.base_models:
        yield keys.BASE_MODEL_COUNT, len(header.base_models), Kind.UINT32
    for index, base in enumerate(header.base_models):
        # A merge recipe may name folders of the machine it ran on: those keep their last part only.
        path = PurePosixPath(base)
        yield keys.BASE_MODEL_NAME.format(id=index), path.name, Kind.STRING
        if len(path.parts) == 2 and not base.startswith(("/", ".", "~")):
            yield keys.BASE_MODEL_ORGANIZATION.format(id=index), path.parts[0], Kind.STRING


def _model(model: ModelConfig) -> Iterator[Entry]:
    arch = architecture(model)
    integers = {
        Keys.LLM.VOCAB_SIZE: model.rows,
        Keys.LLM.CONTEXT_LENGTH: model.context_length,
        Keys.LLM.EMBEDDING_LENGTH: model.hidden,
        Keys.LLM.BLOCK_COUNT: model.layers,
        Keys.LLM.FEED_FORWARD_LENGTH: model.intermediate,
        Keys.Attention.HEAD_COUNT: model.heads,
        Keys.Attention.HEAD_COUNT_KV: model.kv_heads,
        Keys.Attention.SLIDING_WINDOW: model.sliding_window,
        Keys.Rope.DIMENSION_COUNT: model.head_dim,
    }
    if model.heads * model.head_dim != model.hidden:
        integers |= {Keys.Attention.KEY_LENGTH: model.head_dim, Keys.Attention.VALUE_LENGTH: model.head_dim}
    for key, value in integers.items():
        yield key.format(arch=arch), value, Kind.UINT32
    yield Keys.Attention.LAYERNORM_RMS_EPS.format(arch=arch), model.norm_eps, Kind.FLOAT32
    yield Keys.Rope.FREQ_BASE.format(arch=arch), model.rope_theta, Kind.FLOAT32
    for name, value in rope.scaling(model).items():
        kind = {"type": Kind.STRING, "original_context_length": Kind.UINT32}.get(name, Kind.FLOAT32)
        yield f"{arch}.rope.scaling.{name}", value, kind


def _tokenizer(header: GgufHeader) -> Iterator[Entry]:
    keys, vocabulary, ids = Keys.Tokenizer, header.vocabulary, header.ids
    if not vocabulary.pre:
        raise Refusal(
            finding("pretokenizer-unknown", file="tokenizer.json", found="no name", expected="one that llama.cpp knows")
        )
    tokens = padded(vocabulary, header.model.rows)
    yield keys.MODEL, vocabulary.model, Kind.STRING
    yield keys.PRE, vocabulary.pre, Kind.STRING
    yield keys.LIST, tuple(token.text for token in tokens), Kind.ARRAY
    if vocabulary.model == "llama":
        yield keys.SCORES, tuple(token.score for token in tokens), Kind.ARRAY
    yield keys.TOKEN_TYPE, tuple(int(token.kind) for token in tokens), Kind.ARRAY
    yield keys.MERGES, vocabulary.merges, Kind.ARRAY
    explicit = {
        keys.BOS_ID: ids.bos,
        keys.EOS_ID: ids.eos,
        keys.EOT_ID: ids.eot,
        keys.EOM_ID: ids.eom,
        keys.UNK_ID: ids.unk,
        keys.PAD_ID: ids.pad,
    }
    for key, value in explicit.items():
        yield key, value, Kind.UINT32
    yield keys.ADD_BOS, ids.add_bos, Kind.BOOL
    yield keys.ADD_EOS, ids.add_eos, Kind.BOOL
    yield keys.ADD_PREFIX, vocabulary.add_space_prefix, Kind.BOOL
    yield keys.CHAT_TEMPLATE, header.template, Kind.STRING
