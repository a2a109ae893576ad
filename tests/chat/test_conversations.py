"""Where answers end is where the template's terminator comes next, whatever the family."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermetiq.calibration.corpus import Chat
from hermetiq.chat.contract import derive
from hermetiq.chat.conversations import conversations
from hermetiq.checkpoint import open_checkpoint
from tests.fixtures.models import tiny_checkpoint

CHATS = (
    Chat(({"role": "user", "content": "two?"}, {"role": "assistant", "content": "Yes."},
          {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "Quite."})),
    Chat(({"role": "user", "content": "one " * 400}, {"role": "assistant", "content": "Long."})),
    Chat(({"role": "user", "content": "three?"}, {"role": "assistant", "content": "No"})),
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("endings") / "model", family="llama", tokenizer="bpe")


def test_each_answer_ends_before_a_terminator_and_behind_its_text(model: Path) -> None:
    source = open_checkpoint(model)
    contract = derive(source)
    found = conversations(source, contract, CHATS)
    answers = iter(
        message["content"]
        for chat in CHATS
        for message in chat.messages
        if message["role"] == "assistant" and len(found.rows) == len(CHATS)
    )
    assert len(found.ends) == 4
    for row, place in found.ends:
        assert found.rows[row][place + 1] == contract.terminator_id
        assert source.tokenizer.decode(found.rows[row][: place + 1]).endswith(next(answers))


def test_chats_beyond_the_context_are_left_out(model: Path) -> None:
    source = open_checkpoint(model)
    whole = conversations(source, derive(source), CHATS)
    limit = sorted(map(len, whole.rows))[1]
    object.__setattr__(source.model, "context_length", limit)
    short = conversations(source, derive(source), CHATS)
    assert short.rows == tuple(row for row in whole.rows if len(row) <= limit)
    assert [row for row, _ in short.ends] == [0, 0, 1]


def test_a_base_model_has_none(model: Path) -> None:
    source = open_checkpoint(model)
    source.templates = {}
    contract = derive(source, base_model=True)
    assert conversations(source, contract, CHATS).rows == ()
