"""Models as people publish them, repaired without anybody editing JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hermetiq import cli
from hermetiq.chat.contract import derive
from hermetiq.checkpoint import open_checkpoint
from hermetiq.repair import repair
from hermetiq.repair.files import repaired_files
from tests.fixtures.models import copy_of, edit_json, tiny_checkpoint
from tests.fixtures.tokenizers import CHATML
from tests.repair.test_repair import contents, document, edit_tokenizer, edit_weights, rules

IM_END, IM_START, EOS = 32000, 32001, "</s>"


def lelantos(hermes: Path, folder: Path) -> Path:
    """A ChatML merge that came out of MergeKit with the EOS, the added tokens and the template of other models."""
    copy_of(hermes, folder)
    for file in ("config.json", "generation_config.json"):
        edit_json(folder / file, eos_token_id=2)
    edit_json(folder / "special_tokens_map.json", eos_token=EOS)
    template = "{{ bos_token }}" + CHATML
    edit_json(folder / "tokenizer_config.json", eos_token=EOS, added_tokens_decoder={}, chat_template=template)
    (folder / "added_tokens.json").unlink()
    return folder


def test_the_eos_of_a_merge_becomes_the_end_of_the_turn_everywhere(hermes: Path, tmp_path: Path) -> None:
    source = lelantos(hermes, tmp_path / "lelantos")
    assert rules(source) == {"eos-mismatch", "double-bos", "spm-stale"}
    result = repair(str(source), tmp_path / "out")
    assert result.unrepaired == ()
    assert document(tmp_path / "out", "config.json")["eos_token_id"] == [IM_END, 2]
    assert document(tmp_path / "out", "generation_config.json")["eos_token_id"] == [IM_END, 2]
    config = document(tmp_path / "out", "tokenizer_config.json")
    assert config["eos_token"] == "<|im_end|>"
    assert config["add_bos_token"] is False
    assert config["added_tokens_decoder"][str(IM_START)]["content"] == "<|im_start|>"
    assert (tmp_path / "out" / "tokenizer.model").exists()
    assert {"eos-mismatch", "double-bos", "spm-stale"} <= {change.rule for change in result.changes}
    assert repair(str(tmp_path / "out"), tmp_path / "again").changes == ()
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_a_sentencepiece_file_of_another_model_is_left_out(hermes: Path, tmp_path: Path) -> None:
    source = copy_of(hermes, tmp_path / "source")

    def rename(tokenizer: dict[str, dict[str, dict[str, int]]]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["ẘẘẘ"] = vocabulary.pop("梦")

    edit_tokenizer(source, rename)
    checkpoint = open_checkpoint(source)
    assert "tokenizer.model" not in repaired_files(checkpoint, derive(checkpoint))


def test_the_command_tells_changes_and_what_is_left(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tiny_checkpoint(tmp_path / "source", family="qwen2", tokenizer="bpe")
    edit_json(source / "config.json", eos_token_id=800)
    edit_weights(source, lambda tensors: tensors["lm_head.weight"][3].fill_(torch.nan))
    with pytest.raises(SystemExit) as stop:
        cli.main(["repair", str(source), str(tmp_path / "out")])
    assert stop.value.code == 1
    told = capfd.readouterr().out
    assert "changed eos-mismatch config.json: eos_token_id\n    from 800 to [802, 800]" in told
    assert "changed restated config.json: rope_parameters" in told
    assert "not repaired: The numbers that stood there" in told
    assert told.endswith("1 findings not repaired\n")
    with pytest.raises(SystemExit):
        cli.main(["repair", str(tmp_path / "out"), str(tmp_path / "again"), "--json"])
    account = json.loads(capfd.readouterr().out)
    assert account["changes"] == []
    assert [each["finding"]["rule"] for each in account["unrepaired"]] == ["weight-nan"]
