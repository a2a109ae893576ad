"""A model without a template is a base model: `--base-model` says so, and nothing about chats is asked of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hermetiq import cli
from hermetiq.chat.calibration import calibration_rows
from hermetiq.chat.contract import derive
from hermetiq.chat.inspect import lint
from hermetiq.checkpoint import open_checkpoint
from hermetiq.errors import HermetiqError, Refusal
from tests.fixtures.models import edit_json, tiny_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with the document separator as its EOS, as base models have it."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("base") / "base", family="llama", tokenizer="bpe")
    document = json.loads((folder / "tokenizer_config.json").read_text())
    del document["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(document | {"eos_token": "<|endoftext|>"}))
    edit_json(folder / "special_tokens_map.json", eos_token="<|endoftext|>")
    for file in ("config.json", "generation_config.json"):
        edit_json(folder / file, eos_token_id=800)
    return folder


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status: object = 0
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    captured = capfd.readouterr()
    return int(str(status or 0)), captured.out, captured.err


def test_inspect_names_the_flag_and_takes_it(base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capfd, "inspect", base)
    assert status == 1
    assert "template-missing" in out
    assert "--base-model" in out
    status, out, _ = run(capfd, "inspect", base, "--base-model", "--json")
    document = json.loads(out)
    assert (status, document["findings"]) == (0, [])
    contract = document["contract"]
    assert (contract["prompt_format"], contract["terminator"], contract["stop_ids"]) == ("none", "<|endoftext|>", [800])
    assert (contract["tags"], contract["stop_strings"], contract["template"]["characters"]) == ([], [], 0)
    status, out, _ = run(capfd, "inspect", base, "--base-model")
    assert "prompt format none; terminator <|endoftext|> = 800; stops on 800;" in out


@pytest.mark.parametrize("command", ["inspect", "export"])
def test_a_model_with_a_template_is_no_base_model(
    command: str, hermes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    further = (tmp_path / "out", "--to", "gguf:F16") if command == "export" else ()
    status, out, err = run(capfd, command, hermes, *further, "--base-model")
    assert (status, out) == (2, "")
    assert "tokenizer_config.json holds a chat template, so this is no base model" in err
    assert "remedy: leave out --base-model" in err
    assert not (tmp_path / "out").exists()


def test_a_base_model_whose_files_disagree_is_an_error(base: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(base)
    checkpoint.documents["config.json"]["eos_token_id"] = 802
    (item,) = lint(checkpoint, weights=False, base_model=True).findings
    assert (item.rule, item.severity, item.file) == ("eos-mismatch", "error", "config.json")


def test_without_an_eos_there_is_no_contract(base: Path) -> None:
    checkpoint = open_checkpoint(base)
    checkpoint.tokenizer = replace(checkpoint.tokenizer, eos_token=None)
    with pytest.raises(Refusal, match="eos-mismatch: found no token as EOS"):
        derive(checkpoint, base_model=True)


def test_calibration_takes_texts_alone_and_counts_the_chats(base: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(base)
    contract = derive(checkpoint, base_model=True)
    report = calibration_rows(checkpoint, contract, rows=4, row_tokens=64).report
    assert (report.chats, report.tag_tokens) == (0, 0)
    assert report.texts > 0
    assert report.refused > 0
    corpus = tmp_path / "chats.jsonl"
    corpus.write_text(
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    )
    with pytest.raises(HermetiqError, match="does not fill a single row"):
        calibration_rows(checkpoint, contract, source=corpus, rows=4, row_tokens=64)


def test_a_base_model_is_exported_and_verified(base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ("--to", "gguf:F16", "--to", "gptq:8bit-g32", "--rows", 4, "--row-tokens", 64)
    refused, _, err = run(capfd, "export", base, out, *options)
    assert refused == 2
    assert "--base-model" in err
    assert run(capfd, "export", base, out, *options, "--base-model")[0] == 0
    packed = out / "gptq-8bit-g32"
    assert not (packed / "chat_template.jinja").exists()
    assert "chat_template" not in json.loads((packed / "tokenizer_config.json").read_text())
    for artifact in (packed, out / "gguf" / "base-F16.gguf"):
        assert open_checkpoint(artifact).templates == {}
    status, text, _ = run(capfd, "verify", out, "--source", base, "--json")
    reports = json.loads(text)
    assert (status, [report["passed"] for report in reports]) == (0, [True, True])
    for report in reports:
        checks = {check["name"] for check in report["checks"]}
        assert {"contract", "tokens", "bos", "stops", "kl", "terminator"} <= checks
        assert not {"smoke-stops", "smoke-leaks", "never-stops"} & checks
        assert "a base model answers no chats: 8 smoke prompts were left out" in report["notes"]
        assert report["figures"]["turn_ends"] > 50
