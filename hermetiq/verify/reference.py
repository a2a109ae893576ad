"""The source as every artifact is held against it: rendered chats, their ids, and what the source makes of them.

All of it is computed once, however many artifacts there are. The walk reads every weight of the source, so it takes the
artifacts' own answers along in the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from hermetiq.calibration import walk
from hermetiq.calibration.corpus import held_out_chats, smoke_prompts, turn_ends
from hermetiq.chat.contract import ChatContract, derive
from hermetiq.chat.probe import template_variables
from hermetiq.chat.template import Message, RenderRequest, TemplateError, render_each
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.errors import HermetiqError
from hermetiq.model import TokenKind

from .fidelity import Logits
from .parity import Encoding
from .strings import decomposed_strings, parity_strings

TEMPLATES_SHOWN = 4
"""Prompts on which llama.cpp's Jinja engine is compared."""


@dataclass(frozen=True)
class Prompt:
    """An unanswered chat: its messages, the text the source's template makes of them, and the ids of that."""

    messages: tuple[Message, ...]
    text: str
    ids: tuple[int, ...]


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
    samples: tuple[Prompt, ...]
    """Prompts of held-out chats, to compare template engines on."""
    refused: int
    """Held-out chats that the source's template does not take (a system role, say)."""


def read(checkpoint: Checkpoint) -> Reference:
    """Render and encode everything that artifacts are asked about; no weight is read.

    Raises:
        Refusal: the source has no contract.
        HermetiqError: its template takes no held-out chat, or leaves every assistant turn open.
    """
    contract = derive(checkpoint)
    tokenizer, variables = checkpoint.tokenizer, template_variables(checkpoint.tokenizer)
    chats = held_out_chats()
    prompts = [(index, messages) for index, chat in enumerate(chats) for messages in chat.prompts()]
    smoke = [({"role": "user", "content": text},) for text in smoke_prompts()]
    rendered = render_each(
        contract.template,
        [
            *(RenderRequest(chat.messages, False, variables) for chat in chats),
            *(RenderRequest(messages, True, variables) for _, messages in prompts),
            *(RenderRequest(messages, True, variables) for messages in smoke),
        ],
    )
    whole, openings, questions = _split(rendered, len(chats), len(prompts))

    def encode(text: str) -> tuple[int, ...]:
        bos = [contract.bos_token_id] if contract.add_bos and contract.bos_token_id is not None else []
        return (*bos, *tokenizer.encode(text))

    taken = [index for index, text in enumerate(whole) if isinstance(text, str)]
    rows, ends = [], []
    for row, index in enumerate(taken):
        ids = encode(str(whole[index]))
        starts = [encode(str(text)) for (chat, _), text in zip(prompts, openings, strict=True) if chat == index]
        rows.append(ids)
        ends += [(row, position) for position in turn_ends(ids, contract.terminator_id, starts)]
    if not ends:
        raise HermetiqError(
            f"the template closes no assistant turn of {len(chats)} held-out chats", where=str(checkpoint.path)
        )
    specials = [token.text for token in tokenizer.vocabulary.tokens if token.kind in _TAG_KINDS]
    conversations = [str(whole[index]) for index in taken]
    samples = [
        Prompt(messages, text, encode(text))
        for (_, messages), text in zip(prompts, openings, strict=True)
        if isinstance(text, str)
    ]
    return Reference(
        contract=contract,
        rows=tuple(rows),
        ends=tuple(ends),
        texts=tuple(Encoding(text, tuple(tokenizer.encode(text))) for text in parity_strings(specials, conversations)),
        decomposed=tuple(Encoding(text, tuple(tokenizer.encode(text))) for text in decomposed_strings()),
        smoke=tuple(
            Prompt(messages, text, encode(text))
            for messages, text in zip(smoke, questions, strict=True)
            if isinstance(text, str)
        ),
        samples=tuple(samples[:: max(1, len(samples) // TEMPLATES_SHOWN)][:TEMPLATES_SHOWN]),
        refused=len(chats) - len(taken),
    )


@dataclass(frozen=True)
class Reading:
    """What a model makes of rows of ids: final states of each, (tokens, hidden), and the head that gives logits."""

    states: Sequence[Tensor]
    logits: Logits


def walk_through(
    checkpoint: Checkpoint, rows: Sequence[Sequence[int]], on_block: Callable[[int, int], None] | None = None
) -> Reading:
    """Read `rows` with the checkpoint's weights in float32, one decoder block in memory at a time."""
    states = walk.final_hidden(checkpoint.config, checkpoint.load, rows, on_block=on_block)
    return Reading(states, walk.head(checkpoint.config, checkpoint.load))


_TAG_KINDS = (TokenKind.CONTROL, TokenKind.USER_DEFINED, TokenKind.UNKNOWN)

Rendering = str | TemplateError


def _split(
    rendered: Sequence[Rendering], first: int, second: int
) -> tuple[Sequence[Rendering], Sequence[Rendering], Sequence[Rendering]]:
    return rendered[:first], rendered[first : first + second], rendered[first + second :]
