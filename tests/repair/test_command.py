"""What a repair leaves out, and what its command tells: every change, and what is not repaired."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hermetiq import cli
from hermetiq.chat.contract import derive
from hermetiq.checkpoint import open_checkpoint
from hermetiq.repair.files import repaired_files
from tests.fixtures.models import copy_of, edit_json, tiny_checkpoint
from tests.repair.test_repair import edit_tokenizer, edit_weights


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
