"""Templates taken apart: the pieces make every chat again, or the template is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermetiq.calibration.heldout import held_out_chats
from hermetiq.chat.contract import ChatContract, Tag
from hermetiq.chat.template import RenderRequest, TemplateError, render_each
from hermetiq.errors import HermetiqError
from hermetiq.recipes.turns import template_variables, turns
from tests.chat import templates

CHATML = ChatContract(
    template=templates.CHATML,
    terminator="<|im_end|>",
    terminator_id=32000,
    stop_ids=(2, 32000),
    tags=(Tag("<s>", 1), Tag("</s>", 2), Tag("<|im_end|>", 32000), Tag("<|im_start|>", 32001)),
    bos_token_id=1,
    add_bos=True,
    pad_token_id=None,
    unk_token_id=0,
    tokens=32002,
    rows=32002,
    eos_sources=(),
    prompt_format="chatml",
    stop_strings=(),
)
SYSTEM_BEFORE_THE_LAST = """
{{- bos_token }}
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + (system + '\\n\\n' if system and loop.last else '') + message.content + '[/INST]' }}
    {%- elif message.role == 'assistant' %}{{- ' ' + message.content | trim + eos_token }}{%- endif %}
{%- endfor %}"""
SOUND = {
    "chatml": templates.CHATML,
    "default system": templates.CHATML_WITH_DEFAULT_SYSTEM,
    "mistral": templates.MISTRAL,
    "llama 2": templates.LLAMA_2,
    "zephyr": templates.ZEPHYR,
    "alpaca": templates.ALPACA,
    "mistral 3": SYSTEM_BEFORE_THE_LAST,
    "llama 3": templates.LLAMA_3,
    "gemma": templates.GEMMA,
    "phi": templates.PHI,
    "extended alpaca": templates.ALPACA_EXTENDED,
    "no generation prompt": templates.CHATML_LAST_TURN_OPEN,
    "quotes": templates.CHATML.replace("\\n", '\\n"""{{ \\\\ `'),
}
UNSOUND = {
    "counts": templates.CHATML.replace("message['role'] +", "message['role'] ~ loop.index ~"),
    "shouts": templates.CHATML.replace("message['content']", "message['content'].upper()"),
    "repeats": templates.CHATML.replace("message['content']", "message['content'] + message['content']"),
    "tells lengths": templates.CHATML.replace("message['content']", "message['content'] ~ message['content']|length"),
    "fails": "{{ raise_exception('no') }}",
    "fails in long chats": "{% if messages|length > 4 %}{{ raise_exception('no') }}{% endif %}" + templates.CHATML,
    "turns around": templates.CHATML.replace("in messages", "in messages|reverse"),
    "first only": templates.CHATML.replace("in messages", "in messages[-1:]"),
}


def contract(template: str, **changes: object) -> ChatContract:
    return replace(CHATML, template=template, **changes)  # type: ignore[arg-type]


taken_apart = cache(turns)


def rendered(asked: ChatContract, chats: Sequence[Sequence[dict[str, str]]]) -> list[str | TemplateError]:
    variables = template_variables(asked)
    return render_each(asked.template, [RenderRequest(chat, True, variables) for chat in chats])


@cache
def prompts() -> tuple[tuple[dict[str, str], ...], ...]:
    """A fifth of the prompts in the held-out chats."""
    every = [prompt for chat in held_out_chats() for prompt in chat.prompts()]
    return tuple(tuple(dict(message) for message in prompt) for prompt in every[::5])


@pytest.mark.parametrize("template", SOUND.values(), ids=SOUND)
def test_the_pieces_make_the_prompts_of_held_out_chats(template: str) -> None:
    asked = contract(template)
    pieces, chats = taken_apart(asked), prompts()
    compared = 0
    for chat, text in zip(chats, rendered(asked, chats), strict=True):
        if isinstance(text, TemplateError):
            assert chat[0]["role"] == "system"
            assert pieces.system is None
        else:
            compared += 1
            assert pieces.join(chat) == text
    assert compared > 15


@pytest.mark.parametrize("template", UNSOUND.values(), ids=UNSOUND)
def test_a_template_that_is_more_than_pieces_is_refused(template: str) -> None:
    with pytest.raises(HermetiqError, match="chat template: it "):
        turns(contract(template))


def test_the_pieces_of_chatml() -> None:
    pieces = taken_apart(CHATML)
    assert pieces.start == "<|im_start|>user\n"
    assert pieces.system == ("<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n")
    assert pieces.answer == pieces.prompt == "<|im_end|>\n<|im_start|>assistant\n"
    assert pieces.question == "<|im_end|>\n<|im_start|>user\n"
    assert pieces.trimmed == set()


def test_white_space_that_the_template_strips_is_told_by_role() -> None:
    assert taken_apart(contract(templates.LLAMA_2)).trimmed == {"user", "assistant"}
    assert taken_apart(contract(templates.TRIMMING)).trimmed == {"system", "user", "assistant"}


def test_a_system_message_before_the_last_question_is_found_there() -> None:
    pieces = taken_apart(contract(SYSTEM_BEFORE_THE_LAST))
    assert (pieces.system, pieces.late, pieces.trimmed) == (("", "\n\n"), True, {"assistant"})


def test_a_template_without_a_system_role_has_no_place_for_one() -> None:
    assert taken_apart(contract(templates.MISTRAL)).system is None


PIECE = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=8)


@settings(max_examples=12, deadline=None)
@given(start=PIECE, before=PIECE, behind=PIECE, question=PIECE, answer=PIECE)
def test_any_template_of_pieces_is_taken_apart_into_them(
    start: str, before: str, behind: str, question: str, answer: str
) -> None:
    """Texts that hold anything, quotes and braces among it, come out as they went in."""
    variables = {"a": start, "b": before, "c": behind, "d": question, "e": answer}
    values = "".join(f"{{%- set {name} = {_literal(text)} %}}" for name, text in variables.items())
    template = values + (
        "{%- for m in messages %}{%- if m.role == 'system' %}{{- b + m.content + c }}"
        "{%- elif m.role == 'user' %}{%- if loop.first %}{{- a }}{%- elif messages[loop.index0 - 1].role != 'system' %}"
        "{{- d }}{%- endif %}{{- m.content + e }}{%- else %}{{- m.content }}{%- endif %}{%- endfor %}"
    )
    pieces = turns(contract(template))
    assert (pieces.start, pieces.system, pieces.question, pieces.answer) == (start, (before, behind), question, answer)


def _literal(text: str) -> str:
    return "'" + "".join(f"\\U{ord(letter):08x}" for letter in text) + "'"
