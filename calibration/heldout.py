"""Chats to verify on and chats to settle on: written for this project, so no model was trained or calibrated on them.

They are two sets, because an artifact whose gains were settled on the chats that measure it would measure too well.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from .corpus import Chat, read_jsonl


@cache
def held_out_chats() -> tuple[Chat, ...]:
    """What `verify` measures on: about 7,500 tokens and 120 assistant turns in ChatML under the Mistral tokenizer."""
    return _chats("heldout.jsonl")


@cache
def settling_chats() -> tuple[Chat, ...]:
    """What the final norm's gains are settled on: 130 assistant turns, about 8,800 tokens counted likewise."""
    return _chats("settling.jsonl")


def smoke_prompts() -> tuple[str, ...]:
    """Single questions with short natural answers, so that a model which stops at all stops soon."""
    return _SMOKE_PROMPTS


def turn_ends(
    ids: Sequence[int],
    terminator_id: int,
    prompts: Sequence[Sequence[int]],
) -> list[int]:
    """Positions in a rendered chat whose next token is the terminator that closes an assistant turn.

    ChatML closes every turn with the same token, Llama 2 only the assistant's. In both, a prompt that ends where the
    assistant begins has all earlier terminators and no later one: their number tells which terminator comes next.

    Args:
        ids: token ids of the whole chat.
        prompts: token ids of each of `Chat.prompts()`, rendered with the generation prompt.

    Returns:
        One position per assistant turn, ascending. A turn that the template leaves open has none.
    """
    terminators = [position for position, token in enumerate(ids) if token == terminator_id]
    closing = [list(prompt).count(terminator_id) for prompt in prompts]
    return [terminators[number] - 1 for number in closing if number < len(terminators)]


def _chats(name: str) -> tuple[Chat, ...]:
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    return tuple(document for document in read_jsonl(text, name) if isinstance(document, Chat))


_SMOKE_PROMPTS = (
    "What is the capital of France?",
    "Say hello in one short sentence.",
    "What is 2 + 2?",
    "Name the three primary colours.",
    "How do you say 'good morning' in French?",
    "How many days are there in a week?",
    "Write one line of Python that prints hello.",
    "Is the sun a star or a planet?",
)
