"""Writes chats down as the model reads them: its own template, its own tokenizer, BOS exactly once (U19)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hermetiq.chat.contract import ChatContract
from hermetiq.chat.probe import template_variables
from hermetiq.chat.template import Message, RenderRequest, render_each
from hermetiq.checkpoint.tokenizer import Tokenizer


@dataclass(frozen=True)
class Scribe:
    """A model's template and tokenizer at work.

    What the template refuses (a system role, say) comes out as None, and so does every chat of a base model.
    """

    contract: ChatContract
    tokenizer: Tokenizer

    def render(self, chats: Sequence[Sequence[Message]], *, prompt: bool = False) -> list[str | None]:
        """Chats as text, with the opening of the answer if `prompt`.

        Raises:
            TemplateUnsafe: the template is not safe to render, or does not end.
        """
        if not self.contract.is_chat:
            return [None] * len(chats)
        variables = template_variables(self.tokenizer)
        outcomes = render_each(self.contract.template, [RenderRequest(chat, prompt, variables) for chat in chats])
        return [outcome if isinstance(outcome, str) else None for outcome in outcomes]

    def encode(self, rendered: str) -> tuple[int, ...]:
        """Ids of a rendered chat, with BOS where the contract adds one; a template prints its own in the text."""
        bos = self.contract.bos_token_id
        return (*([bos] if self.contract.add_bos and bos is not None else []), *self.tokenizer.encode(rendered))
