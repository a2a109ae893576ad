"""A vocabulary out of `tokenizer.json`, and a tokenizer out of a vocabulary.

GGUF holds a vocabulary as plain lists: texts, kinds, scores or merges. `tokenizer.json` holds the same facts as a
pipeline of the `tokenizers` library. `read_vocabulary` and `build_backend` lead from one to the other and back; what
the pipeline does is asked of it, not read off its description.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from hermetiq.errors import Refusal
from hermetiq.model import Token, TokenKind, Vocabulary
from hermetiq.rules import finding

from .documents import incomplete
from .pretokenizer_table import PRE_TOKENIZERS, identify

SPACE = "\u2581"
"""SentencePiece's visible space."""
SENTENCEPIECE_PRE = "default"
"""`tokenizer.ggml.pre` of every SentencePiece vocabulary."""

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_MATCHED = (TokenKind.CONTROL, TokenKind.USER_DEFINED, TokenKind.UNKNOWN)
"""Kinds that llama.cpp cuts out of a text before anything else, as `tokenizers` does with added tokens."""
_MOST_TOKENS = 1 << 20
_LONGEST = 2048
"""Letters of a SentencePiece token; the ways to cut one in two grow with its length."""
_FILE = "tokenizer.json"
_UNSUPPORTED = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
"""Fields of a BPE that change its ids and that llama.cpp has nothing for."""


def read_vocabulary(document: Mapping[str, Any], backend: tokenizers.Tokenizer) -> Vocabulary:
    """The vocabulary of a parsed `tokenizer.json`, with `pre` empty where llama.cpp knows no such pre-tokenizer.

    Args:
        document: the parsed file.
        backend: the tokenizer made of the same file.

    Raises:
        Refusal: `source-incomplete`, the file is not a BPE that llama.cpp has a model for, or its lists do not fit.
    """
    model, added = document.get("model"), document.get("added_tokens") or []
    if not isinstance(model, Mapping) or not isinstance(backend.model, models.BPE):
        kind = model.get("type") if isinstance(model, Mapping) else None
        raise _refusal("model.type", repr(kind), "BPE, as in Llama, Mistral and Qwen")
    for field in _UNSUPPORTED:
        if model.get(field):
            raise _refusal(f"model.{field}", repr(model[field]), "no such field, as llama.cpp has none")
    texts = {index: text for text, index in model["vocab"].items()}
    pairs = [_pair(merge) for merge in model.get("merges") or []]
    if _is_byte_level(document):
        tokens = {index: Token(text, TokenKind.NORMAL) for index, text in texts.items()} | _added(added)
        _require_same_ids(tokens, backend)
        return Vocabulary(
            model="gpt2",
            pre=identify(backend).name,
            tokens=complete(tokens, _FILE),
            merges=tuple(f"{left} {right}" for left, right in pairs),
            add_space_prefix=False,
        )
    if not any(_BYTE.fullmatch(text) for text in texts.values()):
        raise _refusal(
            "pre_tokenizer", "a BPE without byte level and without byte tokens", "ByteLevel, or <0x00> to <0xFF>"
        )
    scores = merge_scores(pairs)
    tokens = {
        index: Token(text, kind_of_piece(text), scores.get(text, -float(len(pairs)))) for index, text in texts.items()
    }
    tokens |= _added(added)
    unknown = backend.token_to_id(model.get("unk_token") or "")
    if unknown is not None:
        tokens[unknown] = Token(tokens[unknown].text, TokenKind.UNKNOWN, tokens[unknown].score)
    _require_same_ids(tokens, backend)
    return Vocabulary("llama", SENTENCEPIECE_PRE, complete(tokens, _FILE), (), puts_space_first(backend))


def merge_scores(merges: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Score of each text that a merge makes: minus the rank of the first such merge.

    llama.cpp joins the neighbours whose joint text scores highest, `tokenizers` those whose merge ranks first. The two
    agree where all merges that make one text follow each other, as they do in files converted from SentencePiece.
    """
    scores: dict[str, float] = {}
    for rank, (left, right) in enumerate(merges):
        scores.setdefault(left + right, -float(rank))
    return scores


def scored_merges(tokens: Iterable[Token]) -> list[tuple[str, str]]:
    """Every way to make one token of two, best score first: what llama.cpp's SentencePiece model may do, as merges.

    Of equal scores the one with the longer left half goes first. Runs of spaces have equal scores in Llama's and
    Mistral's files; llama.cpp then joins from the left, and so does this order.
    """
    scores = {token.text: token.score for token in tokens if token.kind not in _MATCHED}
    ranked = []
    for text, score in scores.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in scores and right in scores:
                ranked.append((-score, -len(left), -len(right), left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def build_backend(vocabulary: Vocabulary, *, file: str) -> tokenizers.Tokenizer:
    """A tokenizer that gives the ids llama.cpp gives for `vocabulary`.

    Args:
        vocabulary: `pre` must be a name of `PRE_TOKENIZERS` for a byte-level model.
        file: where the vocabulary stands, for messages.

    Raises:
        Refusal: `pretokenizer-unknown`; `source-incomplete` where a merge makes no token or a text is absurdly long.
    """
    build = _sentencepiece_backend if vocabulary.model == "llama" else _byte_level_backend
    backend = build(vocabulary, file)
    backend.add_special_tokens(_matched(vocabulary, (TokenKind.CONTROL, TokenKind.UNKNOWN)))
    backend.add_tokens(_matched(vocabulary, (TokenKind.USER_DEFINED,)))
    return backend


def _sentencepiece_backend(vocabulary: Vocabulary, file: str) -> tokenizers.Tokenizer:
    longest = max(vocabulary.tokens, key=lambda token: len(token.text)).text
    if len(longest) > _LONGEST:
        raise _refusal("tokens", f"a text of {len(longest)} letters", f"at most {_LONGEST}", file=file)
    unknown = next((token.text for token in vocabulary.tokens if token.kind is TokenKind.UNKNOWN), None)
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=_ids(vocabulary),
            merges=scored_merges(vocabulary.tokens),
            byte_fallback=True,
            fuse_unk=True,
            unk_token=unknown,
        )
    )
    prefix = [normalizers.Prepend(SPACE)] if vocabulary.add_space_prefix else []
    strip = [decoders.Strip(" ", 1, 0)] if vocabulary.add_space_prefix else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def _byte_level_backend(vocabulary: Vocabulary, file: str) -> tokenizers.Tokenizer:
    entry = PRE_TOKENIZERS.get(vocabulary.pre)
    if entry is None:
        raise Refusal(
            finding(
                "pretokenizer-unknown",
                file=file,
                field="tokenizer.ggml.pre",
                found=repr(vocabulary.pre) if vocabulary.pre else "no name",
                expected="one of " + ", ".join(PRE_TOKENIZERS),
                repair="Convert the model again from its Hugging Face folder.",
            )
        )
    ids, merges = _ids(vocabulary), [split_merge(merge) for merge in vocabulary.merges]
    for left, right in merges:
        if not (left in ids and right in ids and left + right in ids):
            raise _refusal("merges", f"{left!r} + {right!r}", "halves and a whole that are tokens", file=file)
    backend = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=entry.ignore_merges))
    backend.pre_tokenizer = entry.build()
    backend.decoder = decoders.ByteLevel()
    return backend


def complete(tokens: Mapping[int, Token], file: str) -> tuple[Token, ...]:
    """All ids from 0 to the highest; each without a token becomes an unused one under a name that no other has.

    Raises:
        Refusal: `source-incomplete`, no tokens, or ids that no vocabulary has.
    """
    if not tokens or min(tokens) < 0 or max(tokens) >= _MOST_TOKENS:
        found = f"ids from {min(tokens)} to {max(tokens)}" if tokens else "no tokens"
        raise _refusal("vocab", found, f"ids from 0 to less than {_MOST_TOKENS}", file=file)
    taken = {token.text for token in tokens.values()}
    return tuple(tokens.get(index) or _unused(index, taken) for index in range(max(tokens) + 1))


def _require_same_ids(tokens: Mapping[int, Token], backend: tokenizers.Tokenizer) -> None:
    """Where ids of the file clash, the library deals out new ones, and every program that loads it has those."""
    for text, index in backend.get_vocab().items():
        if index not in tokens or tokens[index].text != text:
            stated = next((each for each, token in tokens.items() if token.text == text), None)
            raise _refusal("vocab", f"{text!r:.80} = {stated}, which is read as {index}", "an id of its own for each")


def split_merge(merge: str) -> tuple[str, str]:
    """`left right` as two texts; the first character is never the separator, as in llama.cpp."""
    cut = merge.find(" ", 1)
    return (merge[:cut], merge[cut + 1 :]) if cut > 0 else (merge, "")


def kind_of_piece(text: str) -> TokenKind:
    """The kind of a SentencePiece token that is not an added one."""
    return TokenKind.BYTE if _BYTE.fullmatch(text) else TokenKind.NORMAL


def puts_space_first(backend: tokenizers.Tokenizer) -> bool:
    """Whether a stretch of text gets a space in front, asked of text behind a tag: that is where a chat has its text.

    A Metaspace with `prepend_scheme` `first` puts one at the start of the whole text only. llama.cpp can do so before
    every stretch or before none; none is right for every chat that begins with a tag.
    """
    tags = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    tokens = backend.encode("".join(tags[:1]) + "x", add_special_tokens=False).tokens
    return any(token.startswith(SPACE) for token in tokens)


def _ids(vocabulary: Vocabulary) -> dict[str, int]:
    return {token.text: index for index, token in enumerate(vocabulary.tokens)}


def _unused(index: int, taken: set[str]) -> Token:
    name = f"[PAD{index}]"
    while name in taken:
        name = f"[{name}]"
    return Token(name, TokenKind.UNUSED)


def _is_byte_level(document: Mapping[str, Any]) -> bool:
    pre_tokenizer = document.get("pre_tokenizer") or {}
    return any(step.get("type") == "ByteLevel" for step in pre_tokenizer.get("pretokenizers") or [pre_tokenizer])


def _pair(merge: Any) -> tuple[str, str]:
    """One merge in either spelling: `"left right"`, or `["left", "right"]` since tokenizers 0.20 (U47)."""
    return split_merge(merge) if isinstance(merge, str) else (merge[0], merge[1])


def _added(added: Iterable[Mapping[str, Any]]) -> dict[int, Token]:
    kinds = {True: TokenKind.CONTROL, False: TokenKind.USER_DEFINED}
    return {token["id"]: Token(token["content"], kinds[bool(token.get("special"))]) for token in added}


def _matched(vocabulary: Vocabulary, kinds: Sequence[TokenKind]) -> list[AddedToken]:
    return [
        AddedToken(token.text, special=TokenKind.USER_DEFINED not in kinds, normalized=False)
        for token in vocabulary.tokens
        if token.kind in kinds and token.text
    ]


def _refusal(field: str, found: str, expected: str, *, file: str = _FILE) -> Refusal:
    return Refusal(incomplete(file, field=field, found=found, expected=expected))
