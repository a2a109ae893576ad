"""Calibration rows of one model: a corpus rendered by its own template and encoded by its own tokenizer (U35).

A base model has no template: it is calibrated on the texts of the corpus, and the chats are counted as refused.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hermetiq.calibration.corpus import BUILT_IN, Chat, Document, Message, built_in_documents, read_documents
from hermetiq.calibration.packing import CalibrationReport, CalibrationRows, Encoded, count_tokens, digest, pack
from hermetiq.chat.contract import ChatContract
from hermetiq.chat.scribe import Scribe
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.errors import Finding, HermetiqError
from hermetiq.rules import finding

THIN_TOKENS = 16_384
THIN_DOCUMENTS = 32
"""Below either, the statistics are those of a few texts."""
_BATCH = 512
"""Documents that are rendered at a time, until there are enough."""
_SURPLUS = 1.25
"""Tokens encoded for each that is asked for, so that rows find documents that fit."""


def calibration_rows(
    checkpoint: Checkpoint,
    contract: ChatContract,
    *,
    source: str | Path | None = None,
    rows: int = 128,
    row_tokens: int = 512,
    seed: int = 0,
) -> CalibrationRows:
    """Rows of token ids to calibrate the model on, at most `rows`, none longer than `row_tokens` or its context.

    Args:
        source: a file or data set as `read_documents` takes it; the built-in corpus where None.
        seed: draws the documents and the lengths of short rows; the same seed gives the same rows.

    Raises:
        HermetiqError: the source cannot be read, or there is not enough of it for one row.
    """
    documents = built_in_documents() if source is None else read_documents(source)
    name = BUILT_IN if source is None else str(source)
    row_tokens = min(row_tokens, checkpoint.model.context_length)
    drawn = random.Random(seed).sample(documents, len(documents))
    scribe = Scribe(contract, checkpoint.tokenizer)
    bos = _opening_bos(scribe)
    batch = _Encoder(scribe, bos).batch(drawn, enough=int(rows * row_tokens * _SURPLUS))
    packed = pack(batch.documents, rows=rows, row_tokens=row_tokens, seed=seed, bos_id=bos)
    if not packed.rows:
        raise HermetiqError("the corpus does not fill a single row", where=name, remedy="give more, or longer, texts")
    used = [batch.documents[place] for place in packed.documents]
    tokens = sum(map(len, packed.rows))
    report = CalibrationReport(
        source=name,
        rows_asked=rows,
        rows_used=len(packed.rows),
        row_tokens=row_tokens,
        tokens=tokens,
        tag_tokens=count_tokens(packed.rows, {tag.id for tag in contract.tags}),
        chats=sum(document.is_chat for document in used),
        texts=sum(not document.is_chat for document in used),
        folded=batch.folded,
        refused=batch.refused,
        findings=_thin(name, tokens, len(used)),
    )
    return CalibrationRows(packed.rows, report, digest(packed.rows))


@dataclass(frozen=True)
class _Batch:
    """Encoded documents, and what the template made of their chats."""

    documents: tuple[Encoded, ...]
    folded: int
    refused: int


@dataclass(frozen=True)
class _Encoder:
    """Documents to token ids, as the model meets them."""

    scribe: Scribe
    bos: int | None
    """What every document begins with."""

    def batch(self, documents: Sequence[Document], *, enough: int) -> _Batch:
        """Encode documents from the first on, until there are `enough` tokens."""
        encoded: list[Encoded] = []
        folded = refused = tokens = 0
        for start in range(0, len(documents), _BATCH):
            some = self._some(documents[start : start + _BATCH])
            encoded += some.documents
            folded, refused = folded + some.folded, refused + some.refused
            tokens += sum(len(document.ids) for document in some.documents)
            if tokens >= enough:
                break
        return _Batch(tuple(encoded), folded, refused)

    def _some(self, documents: Sequence[Document]) -> _Batch:
        chats = [document.messages for document in documents if isinstance(document, Chat)]
        texts = self.scribe.render(chats)
        # A system message that the template does not take is said by the user; models of that family are trained so.
        again = {place: _folded(chats[place]) for place, text in enumerate(texts) if text is None}
        again = {place: chat for place, chat in again.items() if chat != chats[place]}
        for place, text in zip(again, self.scribe.render(list(again.values())), strict=True):
            texts[place] = text
        rendered = iter(texts)
        encoded: list[Encoded] = []
        for document in documents:
            if isinstance(document, Chat):
                text = next(rendered)
                if text is not None:
                    encoded.append(Encoded(self.scribe.encode(text), is_chat=True))
            else:
                ids = self.scribe.tokenizer.encode(document.text)
                encoded.append(Encoded((*([] if self.bos is None else [self.bos]), *ids), is_chat=False))
        refused = texts.count(None)
        return _Batch(tuple(encoded), folded=sum(texts[place] is not None for place in again), refused=refused)


def _opening_bos(scribe: Scribe) -> int | None:
    """The BOS that the model's chats begin with, whether the template or the tokenizer puts it there; or None."""
    bos = scribe.contract.bos_token_id
    if not scribe.contract.is_chat:
        return bos if scribe.contract.add_bos else None
    (chat,) = scribe.render([({"role": "user", "content": "?"}, {"role": "assistant", "content": "!"})])
    return bos if chat is not None and scribe.encode(chat)[0] == bos else None


def _folded(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The chat with its system message put before the first of the user's; as it is where that cannot be."""
    if len(messages) < 2 or (messages[0]["role"], messages[1]["role"]) != ("system", "user"):
        return tuple(messages)
    asked = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return ({"role": "user", "content": asked}, *messages[2:])


def _thin(source: str, tokens: int, documents: int) -> tuple[Finding, ...]:
    if tokens >= THIN_TOKENS and documents >= THIN_DOCUMENTS:
        return ()
    return (
        finding(
            "calibration-thin",
            file=source,
            found=f"{tokens:,} tokens of {documents} documents",
            expected=f"at least {THIN_TOKENS:,} tokens of {THIN_DOCUMENTS} documents",
        ),
    )
