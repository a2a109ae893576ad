"""The rules that hold a merge against its parents: who owns a tag, under which id, and whether its row came along.

A merge that averages two embeddings row by row, while its parents gave one id to two tokens, has rows of no token at
all. Nothing fails: the tag is in the vocabulary, and its row is neither zero nor a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hermetiq.chat.parents import Parent
from hermetiq.chat.probe import printed_tags
from hermetiq.chat.subject import Subject
from hermetiq.checkpoint.documents import RECIPE
from hermetiq.checkpoint.shards import listed
from hermetiq.errors import Finding, HermetiqError, Severity
from hermetiq.model import EMBEDDING, HEAD, TokenKind
from hermetiq.rules import finding

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_ROWS = 4096
_STRANGER = 0.25
"""Cosine by which a merged row must be nearer to a parent's row of the same id than to its row of the same token.
Unrelated rows differ by some 1 / sqrt(hidden); a parent with a weight of .3 leaves .39."""


def merge_vocab(subject: Subject) -> Iterator[Finding]:
    """Tags and EOS that the merge lost, moved to another id, or put where it has no row."""
    tokenizer, rows = subject.checkpoint.tokenizer, subject.checkpoint.tensors[EMBEDDING].shape[0]
    for text in _wanted(subject) if subject.parents.read else ():
        here = tokenizer.id_of(text)
        owners = _owners(subject, text)
        owned = listed(f"{index} in {parent.name}" for parent, index in owners)
        moved = [f"{index} in {parent.name}" for parent, index in owners if index != here]
        strangers = [] if here is None else _strangers(subject, text, here)
        severity: Severity | None = None
        if here is None and owners:
            found, expected = f"no token {text}", owned
        elif here is not None and here >= rows and owners:
            found, expected = f"{text} = {here} without a row", owned
        elif (moved or strangers) and not subject.parents.remapped:
            # Tools that join the tokenizers move the rows along; whether this one did, `merge-rows` measures.
            found, expected, severity = f"{text} = {here}", listed([*moved, *strangers]), "warning"
        else:
            continue
        yield finding("merge-vocab", file=_file(subject), found=found, expected=expected, severity=severity)
    yield from _lost_eos(subject)


def merge_rows(subject: Subject) -> Iterator[Finding]:
    """Rows that were lost in the merge: NaN, zero, or another token's."""
    if not subject.parents.read:
        return
    for name in (EMBEDDING, HEAD):
        if name in subject.checkpoint.tensors:
            yield from _broken_rows(subject, name, subject.checkpoint.load(name))
    for parent in subject.parents.read:
        yield from _strange_rows(subject, parent)


def _wanted(subject: Subject) -> tuple[str, ...]:
    """Texts that the merge must have as tokens: the template's tags and EOS."""
    tags = [tag.text for tag in subject.contract.tags] if subject.contract else []
    printed = printed_tags((*subject.probe.renderings, subject.probe.template)) if subject.probe else ()
    eos = subject.checkpoint.tokenizer.eos_token
    return tuple(dict.fromkeys([*tags, *printed, *([eos] if eos else [])]))


def _owners(subject: Subject, text: str) -> list[tuple[Parent, int]]:
    """The parents that have the token, with its id there."""
    ids = [(parent, parent.tokenizer.id_of(text)) for parent in subject.parents.read]
    return [(parent, index) for parent, index in ids if index is not None]


def _strangers(subject: Subject, text: str, here: int) -> list[str]:
    """Parents without the token that have another one under its id."""
    tokens = {
        parent.name: parent.tokenizer.vocabulary.tokens[here]
        for parent in subject.parents.read
        if parent.tokenizer.id_of(text) is None and here < len(parent.tokenizer.vocabulary.tokens)
    }
    return [f"{here} is {t.text} in {name}" for name, t in tokens.items() if t.kind is not TokenKind.UNUSED]


def _lost_eos(subject: Subject) -> Iterator[Finding]:
    """An EOS that is not the terminator although a parent's is, or that no parent states (U39)."""
    parents, eos = subject.parents.read, subject.checkpoint.tokenizer.eos_token
    closing = subject.contract.terminator if subject.contract else None
    if eos == closing:
        return
    stated = {parent.name: parent.tokenizer.eos_token for parent in parents if parent.tokenizer.eos_token}
    right = {name: text for name, text in stated.items() if text == closing}
    if not right and eos in stated.values():
        return
    if wanted := right or stated:
        yield finding(
            "merge-vocab",
            file=_file(subject),
            field="eos_token",
            found=eos or "no EOS",
            expected=listed(f"{text} as in {name}" for name, text in wanted.items()),
        )


def _broken_rows(
    subject: Subject,
    name: str,
    weight: Tensor,  # (rows, hidden)
) -> Iterator[Finding]:
    """Rows of NaN, and zero rows of tags, whose tokens a parent has."""
    import torch  # Slow to load, and seldom needed.

    vocabulary = subject.checkpoint.tokenizer.vocabulary.tokens
    finite = [row for part in torch.split(weight, _CHUNK_ROWS) for row in part.isfinite().all(dim=1).tolist()]
    broken = [index for index, whole in enumerate(finite) if not whole]
    tags = [index for text in _wanted(subject) if (index := subject.checkpoint.tokenizer.id_of(text)) is not None]
    zero = [index for index in sorted(tags) if index < len(weight) and not weight[index].any()]
    told = list[str]()
    for index, what in (*((i, "NaN") for i in broken), *((i, "zero") for i in zero)):
        text = vocabulary[index].text if index < len(vocabulary) else ""
        if owners := _owners(subject, text):
            parent, there = owners[0]
            told.append(f"{text} = {index} is {what} ({there} in {parent.name})")
    if told:
        file = subject.checkpoint.tensors[name].file
        yield finding("merge-rows", file=file, field=name, found=listed(told), expected="the rows of the parents")


def _strange_rows(subject: Subject, parent: Parent) -> Iterator[Finding]:
    """Tags whose id the merge changed, and whose row it took from the parent's token of the new id."""
    shifted = dict[str, tuple[int, int]]()
    for text in _wanted(subject):
        here, there = subject.checkpoint.tokenizer.id_of(text), parent.tokenizer.id_of(text)
        if here is not None and there is not None and here != there:
            shifted[text] = here, there
    if not shifted:
        return
    import torch

    try:
        theirs = parent.open().load(EMBEDDING)
    except HermetiqError as error:
        found = f"rows of {parent.name}, not compared: {error.what}"
        yield finding("merge-rows", file=RECIPE, found=found, expected="its weights", severity="info")
        return
    ours = subject.checkpoint.load(EMBEDDING)
    for text, (here, there) in shifted.items():
        if ours.shape[1] != theirs.shape[1] or here >= len(ours) or max(here, there) >= len(theirs):
            continue  # Nothing under that id could be mixed in.
        row = ours[here].float()
        own, other = (torch.cosine_similarity(row, theirs[i].float(), dim=0).item() for i in (there, here))
        if other > own + _STRANGER:
            tokens = parent.tokenizer.vocabulary.tokens
            taken = tokens[here].text if here < len(tokens) else "no token"
            yield finding(
                "merge-rows",
                file=subject.checkpoint.tensors[EMBEDDING].file,
                field=EMBEDDING,
                found=f"{text}: row {here} is like row {here} of {parent.name} ({taken})",
                expected=f"like its row {there}, which is {text}",
            )


def _file(subject: Subject) -> str:
    path = subject.checkpoint.path
    return path.name if path.suffix == ".gguf" else "tokenizer.json"
