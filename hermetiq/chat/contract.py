"""The chat contract: how a model opens and closes a turn, found by using its tokenizer and template.

Fields of configuration files are claims. The contract is what happens: a two-turn chat is rendered, what closes the
assistant's turn is the terminator, and its encoding is the terminator's id. Source, artifact and runtime are each
read into this type, and two contracts are compared; that comparison is the heart of the program.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from hermetiq.chat.eos import EosSource as EosSource
from hermetiq.chat.eos import eos_sources, id_list
from hermetiq.chat.probe import TAG, TEMPLATE_FIELD, Probe, chosen_template, printed_tags, probe
from hermetiq.chat.prompt_formats import NONE, OTHER, PromptFormat, recognised
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.checkpoint.tokenizer import Tokenizer
from hermetiq.errors import HermetiqError, Refusal
from hermetiq.model import EMBEDDING, SpecialIds, TokenKind
from hermetiq.rules import finding


@dataclass(frozen=True)
class Tag:
    """A piece of template text that must be one token, and the id it has."""

    text: str
    id: int


@dataclass(frozen=True)
class ChatContract:
    """Derived once from the source; every artifact and runtime is read back into the same type."""

    template: str
    """The chat template as text (the one that transformers uses); empty for a base model. An artifact's EOS is the
    terminator, so one that prints another EOS begins with the text of that."""
    terminator: str
    terminator_id: int
    stop_ids: tuple[int, ...]
    """Sorted: the terminator and every EOS that a source states which runtimes obey (`EosSource.obeyed`)."""
    tags: tuple[Tag, ...]
    """The template's control tokens, terminator included, by id."""
    bos_token_id: int | None
    add_bos: bool
    """Whether encoding a rendered chat adds BOS; False when the template prints it (U19)."""
    pad_token_id: int | None
    unk_token_id: int | None
    tokens: int
    """Size of the vocabulary: highest id + 1, without unused tokens that only fill the embedding's rows."""
    rows: int
    """Rows of the embedding."""
    eos_sources: tuple[EosSource, ...]
    """Where each EOS was stated; provenance, not compared between source and artifact."""
    prompt_format: str
    """A name of `prompt_formats.FORMATS`, `other` for a template of none of them, `none` for a base model."""
    stop_strings: tuple[str, ...]
    """What opens the next turn where that is plain text, so that no stop id can catch it (U52: ids go before these)."""

    @property
    def is_chat(self) -> bool:
        """Whether there is a template; a base model has none."""
        return self.prompt_format != NONE


@dataclass(frozen=True)
class Difference:
    """One field in which an artifact is not the same chat model as its source."""

    field: str
    source: str
    artifact: str


def derive(checkpoint: Checkpoint, *, base_model: bool = False) -> ChatContract:
    """The contract of a checkpoint, found by rendering and encoding a chat.

    Args:
        base_model: it has no template, and none is asked for; EOS is its terminator.

    Raises:
        Refusal: no contract can be found: `template-missing`, `template-unsafe`, `template-tokens` (the tag that closes
            the turn is not in the vocabulary) or `eos-mismatch` (nothing closes the turn).
        HermetiqError: a `base_model` that has a template.
    """
    return base_contract(checkpoint) if base_model else contract_of(checkpoint, probe(checkpoint))


def contract_of(checkpoint: Checkpoint, seen: Probe) -> ChatContract:
    """`derive`, from a template that has been rendered already. Raises as `derive` does."""
    tokenizer = checkpoint.tokenizer
    terminator = _terminator(seen, tokenizer)
    form = recognised(seen.skeletons)
    return _contract(
        checkpoint,
        terminator,
        stated=(*eos_sources(checkpoint), _template_source(seen, terminator)),
        prints_bos=tokenizer.bos_token is not None and seen.chat.startswith(tokenizer.bos_token),
        template=_with_own_eos(seen.template, tokenizer.eos_token or "", terminator.text),
        tags=_tags(seen, tokenizer, terminator),
        prompt_format=form.name if form else OTHER,
        stop_strings=_stop_strings(form, tokenizer) if form else (),
    )


def base_contract(checkpoint: Checkpoint) -> ChatContract:
    """The contract of a model without a template: texts end with EOS, and nothing else is promised.

    Raises:
        Refusal: `eos-mismatch`, the tokenizer names no EOS.
        HermetiqError: there is a template, so this is a chat model.
    """
    if chosen := chosen_template(checkpoint.templates):
        raise HermetiqError(
            f"{chosen[0]} holds a chat template, so this is no base model",
            where=checkpoint.provenance.name,
            remedy="leave out --base-model; if the template is not the model's own, remove it",
        )
    text, token = checkpoint.tokenizer.eos_token, _id_of(checkpoint.tokenizer, checkpoint.tokenizer.eos_token)
    if text is None or token is None:
        raise Refusal(
            finding(
                "eos-mismatch",
                file="tokenizer_config.json",
                field="eos_token",
                found=f"{text or 'no token'} as EOS",
                expected="a token that ends a text",
                repair="Name the token there that ended the texts of the training.",
            )
        )
    return _contract(
        checkpoint,
        Tag(text, token),
        stated=eos_sources(checkpoint),
        prints_bos=False,
        template="",
        tags=(),
        prompt_format=NONE,
        stop_strings=(),
    )


def _contract(
    checkpoint: Checkpoint,
    terminator: Tag,
    *,
    stated: tuple[EosSource, ...],
    prints_bos: bool,
    template: str,
    tags: tuple[Tag, ...],
    prompt_format: str,
    stop_strings: tuple[str, ...],
) -> ChatContract:
    """A contract with what tokenizer and files say, whether there is a template or not."""
    tokenizer = checkpoint.tokenizer
    tokens = used_tokens(tokenizer)
    # An id without a token cannot stop anything, and llama.cpp does not load a file that names one.
    stops = {token for source in stated if source.obeyed for token in source.ids if 0 <= token < tokens}
    bos = _id_of(tokenizer, tokenizer.bos_token)
    pads = (_id_of(tokenizer, tokenizer.pad_token), *id_list(checkpoint.config.get("pad_token_id")))
    return ChatContract(
        template=template,
        terminator=terminator.text,
        terminator_id=terminator.id,
        stop_ids=tuple(sorted(stops | {terminator.id})),
        tags=tags,
        bos_token_id=bos,
        add_bos=tokenizer.add_bos and bos is not None and not prints_bos,
        pad_token_id=next((token for token in pads if token is not None and 0 <= token < tokens), None),
        unk_token_id=_id_of(tokenizer, tokenizer.unk_token),
        tokens=tokens,
        rows=checkpoint.tensors[EMBEDDING].shape[0],
        eos_sources=stated,
        prompt_format=prompt_format,
        stop_strings=stop_strings,
    )


def compare(source: ChatContract, artifact: ChatContract) -> tuple[Difference, ...]:
    """Where the artifact's contract departs from the source's; empty when it is the same chat model.

    A format may have no place for every further stop id, so an artifact may stop on fewer of them, but never on an id
    that the source does not stop on, and always on the terminator.
    """
    ours, theirs = to_json(source), to_json(artifact)
    del ours["eos_sources"], theirs["eos_sources"]
    if artifact.terminator_id in artifact.stop_ids and set(artifact.stop_ids) <= set(source.stop_ids):
        del ours["stop_ids"]
    return tuple(
        Difference(field, str(ours[field]), str(theirs[field])) for field in ours if ours[field] != theirs[field]
    )


def special_ids(contract: ChatContract) -> SpecialIds:
    """The ids that a writer states explicitly, so that no runtime has to guess (U02, U73)."""
    others = [token for token in contract.stop_ids if token != contract.terminator_id]
    return SpecialIds(
        eos=contract.terminator_id,
        eot=contract.terminator_id if contract.is_chat else None,
        eom=others[0] if others else None,
        bos=contract.bos_token_id,
        pad=contract.pad_token_id,
        unk=contract.unk_token_id,
        add_bos=contract.add_bos,
        add_eos=False,
    )


def to_json(contract: ChatContract) -> dict[str, Any]:
    """The contract as stable JSON; the template as its SHA-256 and its length in characters."""
    digest = hashlib.sha256(contract.template.encode()).hexdigest()
    return {
        **asdict(contract),
        "template": {"sha256": digest, "characters": len(contract.template)},
        "stop_ids": list(contract.stop_ids),
        "tags": [asdict(tag) for tag in contract.tags],
        "eos_sources": [{**asdict(source), "ids": list(source.ids)} for source in contract.eos_sources],
        "stop_strings": list(contract.stop_strings),
    }


def _terminator(seen: Probe, tokenizer: Tokenizer) -> Tag:
    """The token that closes the assistant's turn: the first of the closing text, or EOS where that is plain text."""
    first = next(iter(tokenizer.encode(seen.closing)), None)
    if first is not None and tokenizer.vocabulary.tokens[first].kind in (TokenKind.CONTROL, TokenKind.USER_DEFINED):
        return Tag(tokenizer.vocabulary.tokens[first].text, first)
    tag = TAG.match(seen.closing)
    text = tag.group() if tag else tokenizer.eos_token
    token = _id_of(tokenizer, text)
    if text is not None and token is not None:
        return Tag(text, token)
    if tag:
        raise Refusal(
            finding(
                "template-tokens",
                file=seen.file,
                found=f"{tag.group()} closes the assistant's turn and is not in the vocabulary",
                expected="a tag that is one token",
            )
        )
    raise Refusal(
        finding(
            "eos-mismatch",
            file=seen.file,
            found=f"{seen.closing!r} after the assistant's text, and {text or 'no token'} as EOS",
            expected="a token that ends the turn",
        )
    )


def _with_own_eos(template: str, eos: str, terminator: str) -> str:
    """The template, printing the same where EOS is the terminator; Phi's prints `<|endoftext|>` behind a chat."""
    if "eos_token" not in template or eos == terminator:
        return template
    literal = eos.replace("\\", "\\\\").replace("'", "\\'")
    # Engines take away the first line end behind a block tag.
    return f"{{% set eos_token = '{literal}' %}}" + ("\n" if template.startswith("\n") else "") + template


def _template_source(seen: Probe, terminator: Tag) -> EosSource:
    """What the template itself says: the literal that closes the turn, or whatever EOS is."""
    found = terminator.text if terminator.text in seen.template else "eos_token"
    return EosSource(seen.file, TEMPLATE_FIELD, found, (terminator.id,))


def _tags(seen: Probe, tokenizer: Tokenizer, terminator: Tag) -> tuple[Tag, ...]:
    """Control tokens in the renderings, and every token that the template names in the form of a tag."""
    vocabulary = tokenizer.vocabulary.tokens
    used = {token for text in seen.renderings for token in tokenizer.encode(text)}
    tags = {token: vocabulary[token].text for token in used if vocabulary[token].kind is TokenKind.CONTROL}
    for text in printed_tags((*seen.renderings, seen.template)):
        token = tokenizer.id_of(text)
        if token is not None:
            tags[token] = text
    return tuple(Tag(text, token) for token, text in sorted((tags | {terminator.id: terminator.text}).items()))


def _stop_strings(form: PromptFormat, tokenizer: Tokenizer) -> tuple[str, ...]:
    """The texts that open the next turn and are no tokens."""
    return tuple(text for text in form.openings if tokenizer.id_of(text) is None)


def _id_of(tokenizer: Tokenizer, text: str | None) -> int | None:
    return None if text is None else tokenizer.id_of(text)


def used_tokens(tokenizer: Tokenizer) -> int:
    """Highest id + 1, without unused tokens behind it."""
    tokens = tokenizer.vocabulary.tokens
    return next((i + 1 for i in reversed(range(len(tokens))) if tokens[i].kind is not TokenKind.UNUSED), 0)
