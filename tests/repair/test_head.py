"""A head that nobody stored: the embedding where the model reads through it, lost where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from hermetiq.calibration.corpus import Chat
from hermetiq.chat.inspect import inspect
from hermetiq.errors import Refusal
from hermetiq.repair import head, repair
from tests.fixtures.models import edit_json, tiny_checkpoint
from tests.repair.test_repair import EMBEDDING, WEIGHTS, contents, document, edit_weights, rules


def echoing(folder: Path) -> Path:
    """A tied model that says each token again: no block adds anything, and each row is most like itself."""
    tiny_checkpoint(folder, family="qwen2", tokenizer="bpe", tied=True)

    def change(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                tensor.zero_()
        tensors[EMBEDDING] *= 50

    edit_weights(folder, change)
    edit_json(folder / "config.json", tie_word_embeddings=False)
    return folder


@pytest.fixture(autouse=True)
def _chats_to_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(({"role": "user", "content": "a" * 500}, {"role": "assistant", "content": "a" * 500}))
    monkeypatch.setattr(head, "held_out_chats", lambda: (chat,))


def test_a_model_that_reads_through_its_embedding_is_tied(tmp_path: Path) -> None:
    source = echoing(tmp_path / "source")
    assert rules(source) == {"head-tie"}
    result = repair(str(source), tmp_path / "out")
    assert result.unrepaired == ()
    assert document(tmp_path / "out", "config.json")["tie_word_embeddings"] is True
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()
    (change,) = (each for each in result.changes if each.rule == "head-tie")
    assert (change.field, change.old, change.new) == ("tie_word_embeddings", "false", "true")
    assert "nats per token; guessing has 6.69" in change.why
    assert repair(str(tmp_path / "out"), tmp_path / "again").changes == ()
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_a_model_that_does_not_has_lost_its_head(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source", family="qwen2", tokenizer="bpe", tied=True)
    edit_json(source / "config.json", tie_word_embeddings=False)
    assert [item.rule for item in inspect(str(source)).findings] == ["head-tie"]
    with pytest.raises(Refusal) as refused:
        repair(str(source), tmp_path / "out")
    (item,) = refused.value.findings
    assert item.rule == "head-tie"
    assert "guessing has 6.69" in item.found
    assert not (tmp_path / "out").exists()


def test_no_number_is_no_proof() -> None:
    assert head.Reading(2.0, 10.0).is_head
    assert not head.Reading(7.0, 10.0).is_head
    assert not head.Reading(float("nan"), 10.0).is_head
