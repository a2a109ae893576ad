"""Chats as one model's template and tokenizer write them down, and where the answers in them end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from hermetiq.calibration.corpus import Chat
from hermetiq.calibration.heldout import turn_ends
from hermetiq.chat.contract import ChatContract
from hermetiq.chat.scribe import Scribe
from hermetiq.chat.template import Message
from hermetiq.checkpoint.base import Checkpoint


@dataclass(frozen=True)
class Prompt:
    """An unanswered chat: its messages, the text the template makes of them, and the ids of that."""

    messages: tuple[Message, ...]
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Conversation:
    """A whole chat, and its beginnings up to each answer."""

    text: str
    ids: tuple[int, ...]
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class Conversations:
    """The chats that the template takes and the context holds; none of a base model's."""

    taken: tuple[Conversation, ...]
    ends: tuple[tuple[int, int], ...]
    """(place in `taken`, position of the last token before the terminator) of each answer that the template closes."""
    refused: int
    """Chats that the template does not take."""
    long: int
    """Chats that the context does not hold."""

    @property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """Ids of each chat."""
        return tuple(chat.ids for chat in self.taken)


def conversations(checkpoint: Checkpoint, contract: ChatContract, chats: Sequence[Chat]) -> Conversations:
    """Render and encode chats, and find where their answers end."""
    written = _written(Scribe(contract, checkpoint.tokenizer), chats)
    rendered = [chat for chat in written if chat]
    taken = [chat for chat in rendered if 0 < len(chat.ids) <= checkpoint.model.context_length]
    ends = [
        (row, position)
        for row, chat in enumerate(taken)
        for position in turn_ends(chat.ids, contract.terminator_id, [prompt.ids for prompt in chat.prompts])
    ]
    return Conversations(tuple(taken), tuple(ends), len(written) - len(rendered), len(rendered) - len(taken))


def prompts(scribe: Scribe, chats: Sequence[tuple[Message, ...]]) -> list[Prompt | None]:
    """Chats that end with a user's turn, with the opening of the answer; None for one that the template refuses."""
    texts = scribe.render(chats, prompt=True)
    return [
        None if text is None else Prompt(messages, text, scribe.encode(text))
        for messages, text in zip(chats, texts, strict=True)
    ]


def _written(scribe: Scribe, chats: Sequence[Chat]) -> list[Conversation | None]:
    """Each chat; None for one that the template refuses."""
    texts = scribe.render([chat.messages for chat in chats])
    beginnings = iter(prompts(scribe, [messages for chat in chats for messages in chat.prompts()]))
    found: list[Conversation | None] = []
    for chat, text in zip(chats, texts, strict=True):
        asked = tuple(prompt for prompt in islice(beginnings, len(chat.prompts())) if prompt)
        found.append(None if text is None else Conversation(text, scribe.encode(text), asked))
    return found
