"""Tokens without a row that nobody needs are taken out of the tokenizer, so that no row has to be made up for them.

The usual ones are padding tokens that a trainer added without resizing the embedding (U05). A token stays if a chat or
a merge needs it: only `--init-tags` may give such a one a row.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Final

from hermetiq.chat.contract import ChatContract
from hermetiq.chat.eos import token_text
from hermetiq.checkpoint import Checkpoint
from hermetiq.checkpoint.documents import CARD, DOCUMENTS, RECIPE, TEMPLATE
from hermetiq.checkpoint.tokenizer_files import SPECIAL
from hermetiq.checkpoint.vocabulary import split_merge
from hermetiq.companions import VOCABULARIES, json_bytes, tokenizer_file
from hermetiq.model import EMBEDDING, TokenKind
from hermetiq.repair.files import stored_files

_TOKENIZER: Final = "tokenizer.json"


def unneeded(checkpoint: Checkpoint, contract: ChatContract) -> dict[int, str]:
    """Tokens, by id, that have no row and no part in chats or merges."""
    tokens = checkpoint.tokenizer.vocabulary.tokens
    rows = checkpoint.tensors[EMBEDDING].shape[0]
    needed = {tag.id for tag in contract.tags} | {contract.bos_token_id, contract.unk_token_id}
    beyond = {
        index: tokens[index].text
        for index in range(rows, len(tokens))
        if index not in needed and tokens[index].kind is not TokenKind.UNUSED
    }
    merged = _merged(_document(checkpoint)) if beyond else frozenset()
    return {index: text for index, text in beyond.items() if text not in merged}


def files_without(checkpoint: Checkpoint, texts: Collection[str]) -> dict[str, bytes]:
    """The small files of `checkpoint`, in which no tokenizer finds the tokens of these texts."""
    document = _document(checkpoint)
    model = {**document["model"], "vocab": _without(document["model"]["vocab"], texts)}
    added = [entry for entry in document.get("added_tokens") or [] if entry["content"] not in texts]
    files = stored_files(checkpoint, (*DOCUMENTS, TEMPLATE, *VOCABULARIES, CARD, RECIPE))
    files["config.json"] = json_bytes(checkpoint.config)
    files[_TOKENIZER] = json_bytes({**document, "model": model, "added_tokens": added})
    if "added_tokens.json" in files:
        files["added_tokens.json"] = json_bytes(_without(checkpoint.documents["added_tokens.json"], texts))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if name in files:
            files[name] = json_bytes(_unnamed(checkpoint.documents[name], texts))
    return files


def _document(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's `tokenizer.json`, or the one that its other vocabulary amounts to."""
    stored = tokenizer_file(checkpoint, _TOKENIZER)
    document: dict[str, Any] = json.loads(checkpoint.tokenizer.backend.to_str() if stored is None else stored)
    return document


def _merged(document: Mapping[str, Any]) -> frozenset[str]:
    """Texts that a merge makes or is made of."""
    merges = document["model"].get("merges") or []
    halves = [split_merge(merge) if isinstance(merge, str) else (merge[0], merge[1]) for merge in merges]
    return frozenset(text for left, right in halves for text in (left, right, left + right))


def _unnamed(document: Mapping[str, Any], texts: Collection[str]) -> dict[str, Any]:
    """A configuration that neither lists these tokens nor has them as special ones."""
    kept = {name: value for name, value in document.items() if name not in SPECIAL or token_text(value) not in texts}
    decoder = kept.get("added_tokens_decoder")
    if isinstance(decoder, Mapping):
        kept["added_tokens_decoder"] = {i: each for i, each in decoder.items() if token_text(each) not in texts}
    return kept


def _without(mapping: Mapping[str, Any], texts: Collection[str]) -> dict[str, Any]:
    return {text: value for text, value in mapping.items() if text not in texts}
