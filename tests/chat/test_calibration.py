"""Calibration rows are what the model itself would see: its template, its tags, its terminator, one BOS."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hermetiq.calibration.packing import CalibrationRows
from hermetiq.chat.calibration import THIN_DOCUMENTS, THIN_TOKENS, calibration_rows
from hermetiq.chat.contract import ChatContract, derive
from hermetiq.checkpoint import open_checkpoint
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.checkpoint.documents import TEMPLATE
from hermetiq.errors import HermetiqError
from tests.chat.templates import LLAMA_2, MISTRAL
from tests.fixtures.models import copy_of, edit_json, tiny_checkpoint
from tests.fixtures.tokenizers import CHATML

BOS, EOS, IM_END, IM_START = 1, 2, 32_000, 32_001


@dataclass(frozen=True)
class Model:
    """A checkpoint that is opened once for many tests."""

    checkpoint: Checkpoint
    contract: ChatContract

    def rows(self, **options: Any) -> CalibrationRows:
        return calibration_rows(self.checkpoint, self.contract, **options)


def opened(folder: Path) -> Model:
    checkpoint = open_checkpoint(folder)
    return Model(checkpoint, derive(checkpoint))


def with_template(hermes: Path, tmp_path: Path, template: str, **config: object) -> Path:
    folder = copy_of(hermes, tmp_path / "model")
    (folder / TEMPLATE).write_text(template)
    edit_json(folder / "tokenizer_config.json", chat_template=template, **config)
    return folder


def corpus(tmp_path: Path, *documents: object) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def chat(number: int, *, system: str | None = None) -> dict[str, object]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    asked = {"role": "user", "content": f"Question {number}: " + "what is the news? " * 10}
    return {"messages": [*messages, asked, {"role": "assistant", "content": f"Answer {number}."}]}


@pytest.fixture(scope="module")
def model(hermes: Path) -> Model:
    return opened(hermes)


@pytest.fixture(scope="module")
def mistral(hermes: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The same with Mistral's template: it prints BOS, ends turns with EOS and refuses a system role."""
    return opened(with_template(hermes, tmp_path_factory.mktemp("mistral"), MISTRAL, eos_token="</s>"))


@pytest.fixture(scope="module")
def built_in(model: Model) -> CalibrationRows:
    return model.rows()


def test_the_built_in_corpus_fills_every_row(built_in: CalibrationRows) -> None:
    report = built_in.report
    assert (report.source, report.rows_asked, report.rows_used, report.rows_dropped) == ("built-in", 128, 128, 0)
    assert len(built_in.rows) == 128
    assert report.tokens == sum(map(len, built_in.rows)) >= 56_000
    assert report.chats >= 120
    assert report.texts >= 60
    assert (report.folded, report.refused, report.findings) == (0, 0, ())


def test_the_reports_tags_are_the_rows_tags(built_in: CalibrationRows) -> None:
    tags = sum(token in (IM_START, IM_END) for row in built_in.rows for token in row)
    assert built_in.report.tag_tokens == tags
    assert built_in.report.tag_share == tags / built_in.report.tokens > 0.01


def test_a_share_of_rows_is_short(built_in: CalibrationRows) -> None:
    lengths = sorted(map(len, built_in.rows))
    assert sum(length <= 256 for length in lengths) == 16
    assert lengths[0] < 50
    assert lengths[16] > 450
    assert lengths[-1] == 512


def test_turns_are_closed(built_in: CalibrationRows) -> None:
    opened = sum(row.count(IM_START) for row in built_in.rows)
    closed = sum(row.count(IM_END) for row in built_in.rows)
    # Chats longer than a row are cut, and nothing else is.
    assert 0 <= opened - closed <= 2 or 0 <= closed - opened <= 2
    assert closed > 400


def test_the_seed_pins_the_rows(model: Model, built_in: CalibrationRows) -> None:
    again, other = model.rows(), model.rows(seed=1)
    assert (again.rows, again.sha256, again.report) == (built_in.rows, built_in.sha256, built_in.report)
    assert other.sha256 != built_in.sha256
    assert set(other.rows) != set(built_in.rows)


@pytest.mark.parametrize(
    ("template", "added"),
    [
        (CHATML, True),
        (CHATML, False),
        ("{{ bos_token }}" + CHATML, True),
        ("{{ bos_token }}" + CHATML, False),
        (LLAMA_2, True),
    ],
)
def test_bos_begins_every_piece_and_never_stands_twice(
    hermes: Path, tmp_path: Path, template: str, added: bool
) -> None:
    folder = with_template(hermes, tmp_path, template, add_bos_token=added, eos_token="</s>")
    source = corpus(tmp_path, *map(chat, range(40)), {"text": "A text of some length. " * 400})
    rows = opened(folder).rows(source=source, row_tokens=256).rows
    assert sum(row.count(IM_END) + row.count(EOS) for row in rows) >= 40
    if template == CHATML and not added:
        assert not any(BOS in row for row in rows)
        return
    assert all(row[0] == BOS for row in rows)
    assert not any(pair == (BOS, BOS) for row in rows for pair in pairwise(row))
    assert sum(row.count(BOS) for row in rows) > 40


def test_a_tokenizer_without_bos_gets_none(tmp_path: Path) -> None:
    qwen = opened(tiny_checkpoint(tmp_path / "qwen", family="qwen2", tokenizer="bpe"))
    assert qwen.contract.bos_token_id is None
    made = qwen.rows(source=corpus(tmp_path, *map(chat, range(20)), {"text": "More."}), row_tokens=256)
    opening = qwen.contract.tags[0].id
    assert sum(row.count(qwen.contract.terminator_id) for row in made.rows) == 40
    assert all(row[0] in (opening, qwen.checkpoint.tokenizer.encode("More.")[0]) for row in made.rows)


def test_terminators_of_another_template_are_included(mistral: Model, tmp_path: Path) -> None:
    made = mistral.rows(source=corpus(tmp_path, *map(chat, range(20))))
    assert sum(row.count(EOS) for row in made.rows) == made.report.tag_tokens - sum(row.count(BOS) for row in made.rows)
    assert sum(row.count(EOS) for row in made.rows) == 20


def test_a_system_message_that_the_template_refuses_goes_before_the_users(mistral: Model, tmp_path: Path) -> None:
    source = corpus(tmp_path, *(chat(number, system="Be brief.") for number in range(3)), chat(3))
    made = mistral.rows(source=source)
    assert (made.report.folded, made.report.refused, made.report.chats) == (3, 0, 4)
    text = "".join(mistral.checkpoint.tokenizer.decode(row) for row in made.rows)
    assert text.count("[INST] Be brief.\n\nQuestion") == 3


def test_a_chat_that_the_template_refuses_is_left_out_and_counted(mistral: Model, tmp_path: Path) -> None:
    twice = {"messages": [{"role": "user", "content": "One?"}, {"role": "user", "content": "Two?"}]}
    made = mistral.rows(source=corpus(tmp_path, twice, *map(chat, range(5)), twice))
    assert (made.report.refused, made.report.folded, made.report.chats) == (2, 0, 5)


def test_no_row_is_longer_than_the_models_context(hermes: Path, tmp_path: Path) -> None:
    folder = copy_of(hermes, tmp_path / "model")
    edit_json(folder / "config.json", max_position_embeddings=96)
    made = opened(folder).rows(source=corpus(tmp_path, *map(chat, range(20)), {"text": "Words. " * 900}), rows=40)
    assert max(map(len, made.rows)) == made.report.row_tokens == 96


def test_a_small_corpus_is_thin_and_its_missing_rows_are_counted(model: Model, tmp_path: Path) -> None:
    source = corpus(tmp_path, *map(chat, range(20)))
    report = model.rows(source=source, rows=64, row_tokens=128).report
    assert report.rows_used + report.rows_dropped == report.rows_asked == 64
    assert 0 < report.rows_used <= 20
    (thin,) = report.findings
    assert (thin.rule, thin.severity, thin.file) == ("calibration-thin", "warning", str(source))
    assert thin.found == f"{report.tokens:,} tokens of 20 documents"
    assert thin.expected == f"at least {THIN_TOKENS:,} tokens of {THIN_DOCUMENTS} documents"


def test_one_long_text_is_thin_however_long(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("The same sentence again and again. " * 4_000)
    report = model.rows(source=path, rows=64).report
    assert report.tokens > THIN_TOKENS
    assert [finding.rule for finding in report.findings] == ["calibration-thin"]
    assert (report.chats, report.texts, report.tag_tokens) == (0, 1, 0)


def test_a_corpus_too_small_for_one_row_is_an_error(model: Model, tmp_path: Path) -> None:
    with pytest.raises(HermetiqError, match=r"corpus\.jsonl: the corpus does not fill a single row"):
        model.rows(source=corpus(tmp_path, {"text": "Too short."}))
