"""Where answers end in the settling chats, as one model's template and tokenizer write them down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from hermetiq.calibration.corpus import Chat
from hermetiq.calibration.heldout import turn_ends
from hermetiq.chat.contract import ChatContract
from hermetiq.chat.scribe import Scribe
from hermetiq.checkpoint.base import Checkpoint


@dataclass(frozen=True)
class Endings:
    """Chats as rows of token ids, and where their answers end."""

    rows: tuple[tuple[int, ...], ...]
    ends: tuple[tuple[int, int], ...]
    """(row, position of the last token before the terminator) of each answer."""


def endings(checkpoint: Checkpoint, contract: ChatContract, chats: Sequence[Chat]) -> Endings:
    """The chats that the template takes and the context holds; nothing of a base model."""
    scribe = Scribe(contract, checkpoint.tokenizer)
    beginnings = iter(scribe.render([prompt for chat in chats for prompt in chat.prompts()], prompt=True))
    rows: list[tuple[int, ...]] = []
    ends: list[tuple[int, int]] = []
    for chat, text in zip(chats, scribe.render([chat.messages for chat in chats]), strict=True):
        prompts = [scribe.encode(prompt) for prompt in islice(beginnings, len(chat.prompts())) if prompt]
        ids = () if text is None else scribe.encode(text)
        if 0 < len(ids) <= checkpoint.model.context_length:
            ends += [(len(rows), place) for place in turn_ends(ids, contract.terminator_id, prompts)]
            rows.append(ids)
    return Endings(tuple(rows), tuple(ends))
