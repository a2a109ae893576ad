"""The source as every artifact is held against it: rendered chats and texts, and their ids by its own tokenizer.

All of it is made once, however many artifacts there are, and no weight is read for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hermetiq.calibration.heldout import held_out_chats, smoke_prompts
from hermetiq.chat.contract import ChatContract, derive
from hermetiq.chat.conversations import Prompt, conversations, prompts
from hermetiq.chat.scribe import Scribe
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.checkpoint.tokenizer import Tokenizer
from hermetiq.errors import HermetiqError
from hermetiq.model import TokenKind

from .parity import Encoding
from .strings import decomposed_strings, parity_strings

SAMPLES = 4
"""Prompts on which llama.cpp's Jinja engine is compared."""
_TAG_KINDS = (TokenKind.CONTROL, TokenKind.USER_DEFINED, TokenKind.UNKNOWN)


@dataclass(frozen=True)
class Reference:
    """What the source's tokenizer and template make of chats and texts."""

    contract: ChatContract
    rows: tuple[tuple[int, ...], ...]
    """Ids of each held-out chat."""
    ends: tuple[tuple[int, int], ...]
    """(row, position of the last token before the terminator) of each assistant turn."""
    texts: tuple[Encoding, ...]
    """Texts on which tokenizers must agree."""
    decomposed: tuple[Encoding, ...]
    """Texts in a Unicode form that llama.cpp cannot normalise."""
    smoke: tuple[Prompt, ...]
    """Questions that each artifact answers."""
    samples: tuple[Prompt, ...]
    """Prompts of held-out chats, to compare template engines on; none of a base model."""
    notes: tuple[str, ...] = ()
    """Held-out chats that were left out, and why."""

    @property
    def sample(self) -> str:
        """A text as the model meets it, to see what a runtime puts before it."""
        return self.samples[0].text if self.samples else self.texts[-1].text


@dataclass(frozen=True)
class HeldOut:
    """The held-out chats as the source's tokenizer and template make them."""

    rows: tuple[tuple[int, ...], ...]
    """Ids of each chat."""
    ends: tuple[tuple[int, int], ...]
    """As of `Reference`."""
    texts: tuple[str, ...]
    """Each chat as text."""
    prompts: tuple[Prompt, ...]
    """The beginning of every chat up to each of its answers."""
    notes: tuple[str, ...]
    """Chats that were left out, and why."""


def read(checkpoint: Checkpoint, *, base_model: bool = False) -> Reference:
    """Render and encode everything that artifacts are asked about.

    Args:
        base_model: the source has no template: artifacts are asked about texts.

    Raises:
        Refusal: the source has no contract.
        HermetiqError: no held-out chat fits its template and context, or every assistant turn stays open.
    """
    contract, tokenizer = derive(checkpoint, base_model=base_model), checkpoint.tokenizer
    chats = held_out(checkpoint, contract)
    specials = [token.text for token in tokenizer.vocabulary.tokens if token.kind in _TAG_KINDS]
    questions = [({"role": "user", "content": text},) for text in smoke_prompts()]
    return Reference(
        contract=contract,
        rows=chats.rows,
        ends=chats.ends,
        texts=_encodings(tokenizer, parity_strings(specials, chats.texts)),
        decomposed=_encodings(tokenizer, decomposed_strings()),
        smoke=tuple(prompt for prompt in prompts(Scribe(contract, tokenizer), questions) if prompt),
        samples=chats.prompts[:: max(1, len(chats.prompts) // SAMPLES)][:SAMPLES],
        notes=chats.notes,
    )


def held_out(checkpoint: Checkpoint, contract: ChatContract) -> HeldOut:
    """Render and encode the held-out chats, and find where their assistant turns end.

    A base model reads what was said in them as a text, which ends with EOS.

    Raises:
        HermetiqError: no chat fits the template and the context, or every assistant turn stays open.
    """
    if not contract.is_chat:
        return _held_out_texts(checkpoint, contract)
    chats = conversations(checkpoint, contract, held_out_chats())
    if not chats.ends:
        raise HermetiqError(
            f"the template closes no assistant turn of {len(chats.taken)} held-out chats that fit the model",
            where=checkpoint.provenance.name,
            remedy="see what the template makes of a chat that alternates user and assistant",
        )
    return HeldOut(
        rows=chats.rows,
        ends=chats.ends,
        texts=tuple(chat.text for chat in chats.taken),
        prompts=tuple(prompt for chat in chats.taken for prompt in chat.prompts),
        notes=_left_out(refused=chats.refused, long=chats.long),
    )


def _held_out_texts(checkpoint: Checkpoint, contract: ChatContract) -> HeldOut:
    scribe = Scribe(contract, checkpoint.tokenizer)
    texts = ["\n\n".join(message["content"] for message in chat.messages) for chat in held_out_chats()]
    rows = {text: (*scribe.encode(text), contract.terminator_id) for text in texts}
    taken = {text: ids for text, ids in rows.items() if len(ids) <= checkpoint.model.context_length}
    if not taken:
        raise HermetiqError(f"none of {len(rows)} held-out texts fits the model", where=checkpoint.provenance.name)
    unasked = f"a base model answers no chats: {len(smoke_prompts())} smoke prompts were left out"
    return HeldOut(
        rows=tuple(taken.values()),
        ends=tuple((row, len(ids) - 2) for row, ids in enumerate(taken.values())),
        texts=tuple(taken),
        prompts=(),
        notes=(unasked, *_left_out(refused=0, long=len(rows) - len(taken))),
    )


def _encodings(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[Encoding, ...]:
    return tuple(Encoding(text, tuple(tokenizer.encode(text))) for text in texts)


def _left_out(*, refused: int, long: int) -> tuple[str, ...]:
    counts = {"the template refuses": refused, "the model's context is too short for": long}
    return tuple(f"{reason} {count} held-out chats, which were left out" for reason, count in counts.items() if count)
