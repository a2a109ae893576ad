"""The small files of a repaired folder: the companions of its weights, and what only a repair may touch.

`companions` states the contract in every place that some reader believes. An export leaves the vocabulary as it is; a
repair also makes the template's tags special tokens, and lets the lists of added tokens beside `tokenizer.json` say
what it says.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from hermetiq.chat.contract import ChatContract, Tag
from hermetiq.chat.eos import SENTENCEPIECE, sentencepiece_of
from hermetiq.chat.probe import TAG
from hermetiq.checkpoint import Checkpoint
from hermetiq.checkpoint.documents import CARD, RECIPE, stays_inside
from hermetiq.checkpoint.tokenizer import Tokenizer
from hermetiq.companions import companions, json_bytes
from hermetiq.model import EMBEDDING, TokenKind

_CONFIG, _TOKENIZER, _ADDED = "tokenizer_config.json", "tokenizer.json", "added_tokens.json"
_DTYPES: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SINGLE: Final = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
"""Flags with which a token is found wherever its text stands."""
_OF_THE_MODEL: Final = ("config.json", "generation_config.json", CARD, RECIPE)
"""Files that an adapter with a tokenizer of its own leaves to its base."""
_FLAGS: Final = ("content", *sorted(_SINGLE))
"""What `added_tokens_decoder` says of a token."""


def stored_files(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, bytes]:
    """Those of the named files that the checkpoint has; what lies behind a link out of its folder does not count."""
    if checkpoint.files is not None:
        return {name: checkpoint.files[name] for name in names if name in checkpoint.files}
    own, tokenizer = checkpoint.path, checkpoint.tokenizer_folder or checkpoint.path
    folders = {name: own if name in _OF_THE_MODEL else tokenizer for name in names}
    return {
        name: (folder / name).read_bytes()
        for name, folder in folders.items()
        if (folder / name).is_file() and stays_inside(folder, folder / name)
    }


def repaired_files(checkpoint: Checkpoint, contract: ChatContract) -> dict[str, bytes]:
    """Every small file of the repaired folder, by name.

    Args:
        checkpoint: with its weights mended.
        contract: of the source, with the rows of the mended embedding.

    Raises:
        Refusal: `source-incomplete`, a file of the source cannot be copied.
    """
    files = companions(checkpoint, contract, {}, dtype=_dtype(checkpoint))
    tokenizer = json.loads(files[_TOKENIZER])
    added = tokenizer.get("added_tokens") or []
    if tags := wrongly_plain(checkpoint.tokenizer, contract.tags):
        added = _with_special(added, tags)
        files[_TOKENIZER] = json_bytes({**tokenizer, "added_tokens": added})
    if SENTENCEPIECE in files and _disagrees(checkpoint):
        del files[SENTENCEPIECE]
    if _ADDED in files:
        files[_ADDED] = json_bytes(_same_ids(checkpoint.documents[_ADDED], checkpoint.tokenizer))
    config = json.loads(files[_CONFIG])
    if "added_tokens_decoder" in config or _ADDED not in files:
        files[_CONFIG] = json_bytes({**config, "added_tokens_decoder": _decoder(added)})
    # The card of a base says nothing of what an adapter made of it.
    cards = (CARD, RECIPE) if checkpoint.provenance.adapter is None else (RECIPE,)
    return {**files, **stored_files(checkpoint, cards)}


def wrongly_plain(tokenizer: Tokenizer, tags: Collection[Tag]) -> tuple[Tag, ...]:
    """Tags that the tokenizer cuts into pieces, and those meant as control tokens that it has as text."""
    tokens = tokenizer.vocabulary.tokens
    return tuple(
        tag
        for tag in tags
        if tokenizer.encode(tag.text) != [tag.id]
        or (TAG.fullmatch(tag.text) and tokens[tag.id].kind in (TokenKind.NORMAL, TokenKind.USER_DEFINED))
    )


def _with_special(added: list[dict[str, Any]], tags: Collection[Tag]) -> list[dict[str, Any]]:
    """The `added_tokens` of a `tokenizer.json`, with `tags` as special tokens under the ids that they have."""
    special = {tag.text: {"id": tag.id, "content": tag.text, **_SINGLE} for tag in tags}
    others = [entry for entry in added if entry["content"] not in special]
    return sorted([*others, *special.values()], key=lambda entry: int(entry["id"]))


def _decoder(added: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same tokens as `tokenizer_config.json` has them."""
    return {str(entry["id"]): {flag: entry.get(flag, False) for flag in _FLAGS} for entry in added}


def _same_ids(stated: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, int]:
    """The texts of `added_tokens.json` under the tokenizer's ids; those that it does not know go."""
    ids = {text: tokenizer.id_of(text) for text in stated}
    return {text: index for text, index in ids.items() if index is not None}


def _disagrees(checkpoint: Checkpoint) -> bool:
    """Whether tokenizer.model has another piece under some id; a file of another kind is nobody's piece."""
    pieces = sentencepiece_of(checkpoint)
    if pieces is None:
        return False
    tokens = checkpoint.tokenizer.vocabulary.tokens
    return any(
        index >= len(tokens) or tokens[index].text != pieces.id_to_piece(index)
        for index in range(pieces.get_piece_size())
    )


def _dtype(checkpoint: Checkpoint) -> str:
    """The type that the configuration names, or else that of the stored embedding."""
    stated = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    return stated if isinstance(stated, str) else _DTYPES[checkpoint.tensors[EMBEDDING].dtype]
