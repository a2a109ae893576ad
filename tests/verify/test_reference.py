"""The source's side: what templates refuse, where BOS comes from, and chats longer than the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermetiq.calibration.heldout import held_out_chats
from hermetiq.checkpoint import open_checkpoint
from hermetiq.checkpoint.documents import TEMPLATE
from hermetiq.errors import HermetiqError
from hermetiq.verify import reference
from hermetiq.verify.reference import Reference
from tests.fixtures.models import copy_of, edit_json
from tests.fixtures.tokenizers import CHATML

BOS, IM_END = 1, 32000


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "parity_strings", lambda specials, chats: (*specials, *chats))


def read(hermes: Path, tmp_path: Path, template: str = CHATML, **config: object) -> Reference:
    folder = copy_of(hermes, tmp_path / "model")
    edit_json(folder / "config.json", **config)
    (folder / TEMPLATE).write_text(template)
    edit_json(folder / "tokenizer_config.json", chat_template=template)
    return reference.read(open_checkpoint(folder))


def test_every_turn_of_every_chat_ends_where_the_assistant_stops(hermes: Path, tmp_path: Path) -> None:
    asked = read(hermes, tmp_path)
    chats = held_out_chats()
    assert len(asked.rows) == len(chats)
    turns = [message for chat in chats for message in chat.messages if message["role"] == "assistant"]
    assert len(asked.ends) == len(turns)
    tokenizer = open_checkpoint(hermes).tokenizer
    for (row, position), turn in zip(asked.ends, turns, strict=True):
        assert asked.rows[row][position + 1] == IM_END
        assert tokenizer.decode(asked.rows[row][: position + 1]).endswith(turn["content"][-10:])
    assert all(row[0] == BOS and row.count(BOS) == 1 for row in asked.rows)
    assert (len(asked.smoke), len(asked.samples), asked.notes) == (8, 4, ())
    specials = {"<unk>", "<s>", "</s>", "<|im_end|>", "<|im_start|>"}
    assert specials <= {encoding.text for encoding in asked.texts}


def test_a_template_that_prints_bos_gets_no_second_one(hermes: Path, tmp_path: Path) -> None:
    asked = read(hermes, tmp_path, "{{ bos_token }}" + CHATML)
    assert not asked.contract.add_bos
    for ids in (*asked.rows, *(prompt.ids for prompt in (*asked.smoke, *asked.samples))):
        assert ids[0] == BOS
        assert ids.count(BOS) == 1


def test_chats_that_the_template_refuses_are_left_out_and_noted(hermes: Path, tmp_path: Path) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    asked = read(hermes, tmp_path, refusing)
    refused = sum(chat.messages[0]["role"] == "system" for chat in held_out_chats())
    assert 0 < refused == len(held_out_chats()) - len(asked.rows)
    assert asked.notes == (f"the template refuses {refused} held-out chats, which were left out",)
    assert all(prompt.messages[0]["role"] == "user" for prompt in asked.samples)


def test_chats_longer_than_the_model_are_left_out_and_noted(hermes: Path, tmp_path: Path) -> None:
    asked = read(hermes, tmp_path, max_position_embeddings=100)
    assert 0 < len(asked.rows) < len(held_out_chats())
    assert max(map(len, asked.rows)) <= 100
    (note,) = asked.notes
    assert note.startswith("the model's context is too short for ")


def test_a_model_that_no_chat_fits_cannot_be_verified(hermes: Path, tmp_path: Path) -> None:
    with pytest.raises(HermetiqError, match="closes no assistant turn of 0 held-out chats"):
        read(hermes, tmp_path, max_position_embeddings=5)
