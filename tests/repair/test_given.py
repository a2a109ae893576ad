"""A model whose template is in no file of it gets the one that the user names, and no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hermetiq import cli
from hermetiq.errors import HermetiqError
from hermetiq.repair import repair, template_at
from tests.fixtures.models import edit_json, tiny_checkpoint
from tests.fixtures.tokenizers import CHATML

OTHER = CHATML.replace("'\\n' + message['content']", "'\\n' + message['content'] | trim")


@pytest.fixture
def speechless(tmp_path: Path) -> Path:
    source = tiny_checkpoint(tmp_path / "speechless", family="qwen2", tokenizer="bpe")
    edit_json(source / "tokenizer_config.json", chat_template=None)
    return source


def stored(folder: Path) -> tuple[str, str]:
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return (folder / "chat_template.jinja").read_text(encoding="utf-8"), config["chat_template"]


def test_a_file_or_a_parents_folder_gives_the_template(speechless: Path, tmp_path: Path) -> None:
    parent = tiny_checkpoint(tmp_path / "parent", family="qwen2", tokenizer="bpe")
    (tmp_path / "template.txt").write_bytes(OTHER.replace("}{%", "}\r\n{%").encode())
    assert template_at(parent) == CHATML
    assert template_at(tmp_path / "template.txt") == OTHER.replace("}{%", "}\n{%")
    result = repair(str(speechless), tmp_path / "out", chat_template=template_at(parent))
    assert stored(tmp_path / "out") == (CHATML, CHATML)
    named = {change.file for change in result.changes if change.rule == "template-missing"}
    assert named == {"chat_template.jinja", "tokenizer_config.json"}
    assert result.unrepaired == ()


def test_it_goes_before_a_template_that_is_there(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source", family="qwen2", tokenizer="bpe")
    # A token without a row, which is taken out: then all small files are made anew.
    edit_json(source / "tokenizer_config.json", pad_token="<pad>")
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 803, "content": "<pad>"})
    (source / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    result = repair(str(source), tmp_path / "out", chat_template=OTHER)
    assert "vocab-overflow" in {change.rule for change in result.changes}
    assert stored(tmp_path / "out") == (OTHER, OTHER)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such file"),
        (b" \n", "an empty template"),
        (b"\xff\xfe{", "a byte that is not UTF-8 at position 0"),
        (b"{" * (1 << 21), "2097152 bytes, where a template has 1048576 at most"),
    ],
)
def test_what_is_no_template_file_is_told(tmp_path: Path, content: bytes | None, told: str) -> None:
    if content is not None:
        (tmp_path / "given").write_bytes(content)
    with pytest.raises(HermetiqError, match=told):
        template_at(tmp_path / "given")


def test_a_folder_without_a_template_is_told(speechless: Path) -> None:
    with pytest.raises(HermetiqError, match="no chat template in this folder"):
        template_at(speechless)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--repair", "--chat-template", "{source}/config.json"], "leaves out 4 of 4 messages"),
        (["--chat-template", "{source}"], "add --repair"),
    ],
)
def test_the_command_takes_no_other_text(
    arguments: list[str], told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tiny_checkpoint(tmp_path / "source", family="qwen2", tokenizer="bpe")
    given = [text.format(source=source) for text in arguments]
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", str(source), str(tmp_path / "out"), "--to", "gguf:Q8_0", *given])
    assert stop.value.code == 2
    assert told in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
