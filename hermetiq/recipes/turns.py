"""A chat template taken apart: the few texts it prints around messages, for runtimes that have no Jinja.

Ollama has a template language of its own. Nothing is translated: marked chats are rendered, what stands between the
marks is cut out, and other chats are put together from the pieces and held against what the template prints. A
template that is more than such pieces is refused, because a recipe that is nearly right serves another model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from hermetiq.chat.contract import ChatContract
from hermetiq.chat.template import RenderRequest, TemplateError, render_each
from hermetiq.errors import HermetiqError

Role = Literal["system", "user", "assistant"]
Chat = Sequence[Mapping[str, str]]

ROLES: tuple[Role, ...] = ("system", "user", "assistant")
_REMEDY = "serve it with a runtime that runs the template itself, such as llama.cpp with --jinja"


@dataclass(frozen=True)
class Turns:
    """The texts between the messages of a chat that ends with a question and is ready for the answer."""

    start: str
    """Before the first question of a chat without a system message; a system message of the template's own is in it."""
    system: tuple[str, str] | None
    """Before and behind a system message, up to the first question; None where the template takes none.

    In a `late` one, what stands between the last question and the text before it."""
    answer: str
    """Between a question and an answer that was given."""
    question: str
    """Between an answer and the next question: the terminator is in it."""
    prompt: str
    """Between the last question and the place where the answer begins."""
    late: bool = False
    """The system message stands before the last question, not before the first (Mistral since version 3)."""
    trimmed: frozenset[Role] = frozenset()
    """Roles whose texts the template strips of white space at both ends."""
    forgetful: bool = False
    """The template cuts out of earlier answers what the model thought (`<think>`); the pieces keep it."""

    def join(self, chat: Chat) -> str:
        """The prompt of a chat: a system message or none, then questions and answers in turn, a question last."""
        texts = [_trim(message["content"], message["role"] in self.trimmed) for message in chat]
        opening = self.start
        if chat[0]["role"] == "system":
            said, *texts = texts
            if self.system and self.late:
                texts[-1] = f"{self.system[0]}{said}{self.system[1]}{texts[-1]}"
            elif self.system:
                opening = f"{self.system[0]}{said}{self.system[1]}"
        between = [self.question if place % 2 else self.answer for place in range(len(texts) - 1)]
        pairs = zip(texts, [*between, self.prompt], strict=True)
        return opening + "".join(text + behind for text, behind in pairs)


def turns(contract: ChatContract) -> Turns:
    """The pieces of the contract's template, proven on chats that they were not cut from.

    Raises:
        HermetiqError: the template is not made of such pieces.
        TemplateUnsafe: it may not be rendered.
    """
    requests = [_request(chat, contract) for chat in (*_MARKED, _THOUGHTFUL, *_OTHERS)]
    plain, with_system, thoughtful, *others = render_each(contract.template, requests)
    cut = _cut(plain, with_system)
    for trimmed in _subsets():
        pieces = replace(cut, trimmed=trimmed)
        if all(_agrees(pieces, chat, text) for chat, text in zip(_OTHERS, others, strict=True)):
            return replace(pieces, forgetful=not _agrees(pieces, _THOUGHTFUL, thoughtful))
    raise HermetiqError("it prints more than the same text before and behind each message", where="chat template",
                        remedy=_REMEDY)  # fmt: skip


def template_variables(contract: ChatContract) -> dict[str, str]:
    """The special tokens that every export states in the files beside the template, by the template's names."""
    texts = {tag.id: tag.text for tag in contract.tags}
    ids = {"bos_token": contract.bos_token_id, "pad_token": contract.pad_token_id, "unk_token": contract.unk_token_id}
    named = {name: texts[token] for name, token in ids.items() if token is not None and token in texts}
    return {"eos_token": contract.terminator, **named}


def _messages(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ROLES[1 + place % 2], "content": text} for place, text in enumerate(contents)]


_SYSTEM, _ASKED, _ANSWERED, _ASKED_AGAIN = (f"Zq{number}xw" for number in range(1, 5))
_MARKED = (_messages(_ASKED, _ANSWERED, _ASKED_AGAIN), _messages(_ASKED, _ANSWERED, _ASKED_AGAIN, system=_SYSTEM))
_THOUGHTFUL = _messages("1 + 1?", "<think>\nOne and one.\n</think>\n\n2", "2 + 2?")
_OTHERS = (
    _messages("Why?"),
    _messages("Why?", system="Be brief."),
    _messages("Same", "Same", "Same", "Same", "Same"),
    _messages("1 < 2 {{ x }}\nand 'so'", "yes\n\n- no", "Ünd \\n", "ok", "one", "two", "three", system="You\nare."),
    _messages("  led and followed\n", "\n by white space ", "\tin\n", "all\n\n", " roles "),
    _messages("  led and followed\n", "\n by white space ", "\tin\n", system="\n all \n"),
)
"""Chats to prove the pieces on: lengths, equal texts, markup, lines, and white space at the ends."""


def _request(chat: Chat, contract: ChatContract) -> RenderRequest:
    return RenderRequest(chat, add_generation_prompt=True, variables=template_variables(contract))


def _cut(plain: str | TemplateError, with_system: str | TemplateError) -> Turns:
    """The pieces, from the two marked chats."""
    start, answer, question, prompt = _between(plain, _ASKED, _ANSWERED, _ASKED_AGAIN)
    pieces = Turns(start, None, answer, question, prompt)
    if isinstance(with_system, TemplateError) or _SYSTEM not in with_system:
        return pieces
    if with_system.find(_SYSTEM) < with_system.find(_ASKED):
        before, behind, *_ = _between(with_system, _SYSTEM, _ASKED, _ANSWERED, _ASKED_AGAIN)
        return replace(pieces, system=(before, behind))
    *_, before, behind, _ = _between(with_system, _ASKED, _ANSWERED, _SYSTEM, _ASKED_AGAIN)
    return replace(pieces, system=(before.removeprefix(question), behind), late=True)


def _between(text: str | TemplateError, *marks: str) -> list[str]:
    """What stands before, between and behind the marks, which the text must hold in this order."""
    if isinstance(text, TemplateError):
        raise HermetiqError(f"it fails on a plain chat: {text.what}", where="chat template", remedy=_REMEDY)
    pieces, rest = [], text
    for mark in marks:
        piece, found, rest = rest.partition(mark)
        if not found:
            raise HermetiqError("it moves or leaves out messages of a chat", where="chat template", remedy=_REMEDY)
        pieces.append(piece)
    return [*pieces, rest]


def _agrees(pieces: Turns, chat: Chat, rendered: str | TemplateError) -> bool:
    """Whether the pieces make what the template prints; a chat with a system message may be refused by it."""
    if isinstance(rendered, TemplateError):
        return chat[0]["role"] == "system" and pieces.system is None
    return pieces.join(chat) == rendered


def _subsets() -> list[frozenset[Role]]:
    """Every set of roles, the empty one first."""
    choices = product((False, True), repeat=len(ROLES))
    return [frozenset(role for role, taken in zip(ROLES, choice, strict=True) if taken) for choice in choices]


def _trim(text: str, wanted: bool) -> str:
    return text.strip() if wanted else text
