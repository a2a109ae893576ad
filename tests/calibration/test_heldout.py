"""The held-out and the settling chats hold what their README promises, and turn ends are those of the assistant."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest
import tokenizers

from hermetiq.calibration.corpus import Chat
from hermetiq.calibration.heldout import held_out_chats, settling_chats, smoke_prompts, turn_ends
from tests.fixtures.hermes import CHATS
from tests.fixtures.tokenizers import CHATML

IM_END = 32_000
ONLY_ASSISTANT_CLOSED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %} {{ message['content'] }}<|im_end|>"
    "{% else %}[{{ message['content'] }}]{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def backend(hermes: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(hermes / "tokenizer.json"))


def ends_of(chat: Chat, template: str, backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Ids of the rendered chat, and its turn ends."""
    compiled = jinja2.Environment().from_string(template)
    ids = backend.encode(compiled.render(messages=chat.messages)).ids
    prompts = [
        backend.encode(compiled.render(messages=messages, add_generation_prompt=True)).ids
        for messages in chat.prompts()
    ]
    return ids, turn_ends(ids, IM_END, prompts)


def test_there_is_enough_to_verify_on(backend: tokenizers.Tokenizer) -> None:
    rendered = [ends_of(chat, CHATML, backend) for chat in held_out_chats()]
    assert sum(len(ends) for _, ends in rendered) >= 100
    assert 6_000 <= sum(len(ids) for ids, _ in rendered) <= 10_000


def test_there_is_enough_to_settle_on(backend: tokenizers.Tokenizer) -> None:
    rendered = [ends_of(chat, CHATML, backend) for chat in settling_chats()]
    assert sum(len(ends) for _, ends in rendered) >= 130
    assert 7_000 <= sum(len(ids) for ids, _ in rendered) <= 10_000


@pytest.mark.parametrize("chats", [held_out_chats(), settling_chats()], ids=["held out", "settling"])
def test_chats_are_well_formed_and_different(chats: tuple[Chat, ...]) -> None:
    for chat in chats:
        roles = [message["role"] for message in chat.messages]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert all(message["content"].strip() for message in chat.messages)
        assert len(chat.prompts()) == len(turns) // 2
    assert len({chat.messages[-1]["content"] for chat in chats}) == len(chats)


def test_no_held_out_question_is_in_the_trained_fixture_or_the_smoke_prompts() -> None:
    held_out = {message["content"] for chat in held_out_chats() for message in chat.messages}
    trained = {message["content"] for chat in CHATS for message in chat.messages}
    assert held_out.isdisjoint(trained | set(smoke_prompts()))


@pytest.mark.parametrize("template", [CHATML, ONLY_ASSISTANT_CLOSED])
def test_turn_ends_stand_behind_the_answers(template: str, backend: tokenizers.Tokenizer) -> None:
    for chat in held_out_chats() + settling_chats():
        ids, ends = ends_of(chat, template, backend)
        answers = [message["content"] for message in chat.messages if message["role"] == "assistant"]
        assert len(ends) == len(answers)
        for end, answer in zip(ends, answers, strict=True):
            assert ids[end + 1] == IM_END
            assert backend.decode(ids[: end + 1], skip_special_tokens=False).endswith(answer)


def test_a_turn_left_open_has_no_end() -> None:
    assert turn_ends([1, 5, 9, 5, 6], 9, [[1, 5], [1, 5, 9, 5]]) == [1]


def test_smoke_prompts_are_single_short_questions() -> None:
    assert 5 <= len(set(smoke_prompts())) == len(smoke_prompts()) <= 8
    assert all(len(prompt) < 80 for prompt in smoke_prompts())
