"""Chats with marked texts, rendered once, from which everything the template prints around a message can be read.

What closes the assistant's turn is not looked up, it is cut out: between the assistant's text and the next turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from hermetiq.chat.template import RenderRequest, TemplateError, TemplateUnsafe, render_each
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.checkpoint.documents import TEMPLATE
from hermetiq.checkpoint.tokenizer import Tokenizer
from hermetiq.errors import Refusal
from hermetiq.rules import finding

TEMPLATE_FIELD = "chat_template"
_BAR = "[|\N{FULLWIDTH VERTICAL LINE}]"
TAG = re.compile(
    rf"<{_BAR}[^\s<>'\"{{}}]{{1,60}}{_BAR}>|</?s>|<(?:bos|eos|start_of_turn|end_of_turn|end_of_utterance)>"
)
"""Text that is meant to be one control token. `[INST]`, `<think>` and the like are plain text in many good models."""
_NO_TEMPLATE = (
    "Put the template of the training run into chat_template.jinja, or have a repair take it from a file or from the "
    "parent's folder with --chat-template PATH. If it is a base model, which has none, say so with --base-model."
)

# No letters that a template could fold, trim or take for markup.
_SYSTEM, _ASKED, _ANSWERED, _ASKED_AGAIN, _ANSWERED_AGAIN = (f"Zq{number}xw" for number in range(1, 6))
_SPEAKERS = {
    _SYSTEM: "{system}",
    _ASKED: "{user}",
    _ANSWERED: "{assistant}",
    _ASKED_AGAIN: "{user}",
    _ANSWERED_AGAIN: "{assistant}",
}
_MARKED = re.compile("|".join(_SPEAKERS))


def _turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


_TWO_TURNS = _turns(_ASKED, _ANSWERED, _ASKED_AGAIN, _ANSWERED_AGAIN)
_REQUESTS = {
    "chat": RenderRequest(_TWO_TURNS),
    "question": RenderRequest(_TWO_TURNS[:1]),
    "prompt": RenderRequest(_TWO_TURNS[:1], add_generation_prompt=True),
    "system": RenderRequest([{"role": "system", "content": _SYSTEM}, *_TWO_TURNS]),
}
"""Every template must take the first; the others are used where they render."""


@dataclass(frozen=True)
class Probe:
    """What the template of one checkpoint prints for the marked chats."""

    file: str
    """Where the template stands."""
    template: str
    chat: str
    """User, assistant, user, assistant."""
    others: tuple[str, ...]
    """More renderings: a first question alone, with the generation prompt, with a system message."""
    closing: str
    """What the template prints after the assistant's text, without whitespace before it; may be empty."""

    @property
    def renderings(self) -> tuple[str, ...]:
        return (self.chat, *self.others)

    @property
    def skeletons(self) -> tuple[str, ...]:
        """The renderings with `{user}`, `{assistant}` and `{system}` in the place of the texts."""
        return tuple(_MARKED.sub(lambda match: _SPEAKERS[match.group()], text) for text in self.renderings)


def template_variables(tokenizer: Tokenizer) -> dict[str, str]:
    """The names of special tokens that transformers hands to a template; those without a token stay undefined."""
    tokens = {
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "unk_token": tokenizer.unk_token,
    }
    return {name: text for name, text in tokens.items() if text is not None}


def chosen_template(templates: Mapping[str, str]) -> tuple[str, str] | None:
    """File and text of the template that transformers uses: the .jinja file goes before the inline text."""
    present = {file: text for file, text in templates.items() if text.strip()}
    if TEMPLATE in present:
        return TEMPLATE, present[TEMPLATE]
    return next(iter(present.items()), None)


def probe(checkpoint: Checkpoint) -> Probe:
    """Render the marked chats with the checkpoint's template.

    Raises:
        Refusal: `template-missing` (none, or none that renders a chat), `template-unsafe`.
    """
    chosen = chosen_template(checkpoint.templates)
    if chosen is None:
        raise Refusal(
            finding(
                "template-missing",
                file=TEMPLATE,
                found="no chat template",
                expected="the template of the training",
                repair=_NO_TEMPLATE,
            )
        )
    file, template = chosen
    tokenizer = checkpoint.tokenizer
    texts = _rendered(file, template, template_variables(tokenizer))
    chat, question, prompt = texts["chat"], texts.get("question", ""), texts.get("prompt", "")
    opening = prompt.removeprefix(question) if prompt.startswith(question) else ""
    others = tuple(text for name, text in texts.items() if name != "chat")
    # Llama 2 begins every question with BOS, and no turn ends with one that is not EOS as well.
    bos = None if tokenizer.bos_token == tokenizer.eos_token else tokenizer.bos_token
    return Probe(file, template, chat, others, _closing(chat, opening, bos))


def first_rendering(template: str, variables: Mapping[str, str]) -> str:
    """The marked chat as `template` prints it, to compare two templates.

    Raises:
        TemplateError: it does not render.
        TemplateUnsafe: it may not be rendered.
    """
    outcome = render_each(template, [_with(_REQUESTS["chat"], variables)])[0]
    if isinstance(outcome, TemplateError):
        raise outcome
    return outcome


def _with(request: RenderRequest, variables: Mapping[str, str]) -> RenderRequest:
    return RenderRequest(request.messages, request.add_generation_prompt, variables)


def _rendered(file: str, template: str, variables: Mapping[str, str]) -> dict[str, str]:
    requests = [_with(request, variables) for request in _REQUESTS.values()]
    try:
        outcomes = dict(zip(_REQUESTS, render_each(template, requests), strict=True))
    except TemplateUnsafe as error:
        raise Refusal(
            finding(
                "template-unsafe", file=file, found=f"a template that {error.what}", expected="one that only prints"
            )
        ) from error
    chat = outcomes["chat"]
    if isinstance(chat, TemplateError):
        wrong = f"a template that fails: {chat.what}"
    elif missing := [text for text in (_ASKED, _ANSWERED, _ASKED_AGAIN, _ANSWERED_AGAIN) if text not in chat]:
        wrong = f"a template that leaves out {len(missing)} of 4 messages"
    else:
        return {name: text for name, text in outcomes.items() if isinstance(text, str)}
    raise Refusal(finding("template-missing", file=file, found=wrong, expected="one that prints a chat of two turns"))


def _closing(chat: str, opening: str, bos: str | None) -> str:
    """The text that closes the assistant's turn, given what opens it (the generation prompt) and what opens a text."""
    between = chat[chat.index(_ANSWERED) + len(_ANSWERED) : chat.rindex(_ASKED_AGAIN)].lstrip()
    tail = chat[chat.rindex(_ANSWERED_AGAIN) + len(_ANSWERED_AGAIN) :].lstrip()
    common = [mine for mine, theirs in takewhile(_equal, zip(_pieces(between), _pieces(tail), strict=False))]
    if common:
        return "".join(common)
    # The two turns end differently: a tag after either closes it, unless it opens the next one.
    tags = [match.group() for match in map(TAG.match, (tail, between)) if match]
    return next((tag for tag in tags if tag != bos and not opening.lstrip().startswith(tag)), "")


def _pieces(text: str) -> list[str]:
    """Tags, and the single characters between them."""
    return re.findall(f"{TAG.pattern}|.", text, re.DOTALL)


def _equal(pair: tuple[str, str]) -> bool:
    return pair[0] == pair[1]


def printed_tags(texts: Sequence[str]) -> tuple[str, ...]:
    """Every `<|…|>` and its like in the texts, in order, each once."""
    return tuple(dict.fromkeys(match.group() for text in texts for match in TAG.finditer(text)))
