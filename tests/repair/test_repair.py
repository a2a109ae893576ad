"""Checkpoints broken in one place, repaired: the rule is silent afterwards, and a second repair changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from hermetiq.chat.contract import compare, derive
from hermetiq.chat.inspect import inspect
from hermetiq.checkpoint import open_checkpoint
from hermetiq.errors import HermetiqError, Refusal
from hermetiq.repair import Repair, repair
from tests.fixtures.models import copy_of, edit_json, tiny_checkpoint, write_json
from tests.fixtures.tokenizers import CHATML

EMBEDDING, HEAD, WEIGHTS = "model.embed_tokens.weight", "lm_head.weight", "model.safetensors"
START, END, END_ID = "<|im_start|>", "<|im_end|>", 802
ENDOFTEXT_ID = 800


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen-like folder: 803 tokens, every file agreeing."""
    return bpe(tmp_path_factory.mktemp("repair") / "healthy")


def bpe(folder: Path, **changes: Any) -> Path:
    return tiny_checkpoint(folder, family="qwen2", tokenizer="bpe", **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def document(folder: Path, name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return parsed


def rules(folder: Path) -> set[str]:
    return {item.rule for item in inspect(str(folder)).findings}


def repaired(source: Path, out: Path) -> Repair:
    """Repair, and hold what every repair promises: the source untouched, a second repair without any change."""
    before = contents(source)
    result = repair(str(source), out)
    assert contents(source) == before
    again = repair(str(out), out.with_name("again"))
    assert again.changes == ()
    assert contents(out.with_name("again")) == contents(out)
    assert [each.finding for each in again.unrepaired] == [each.finding for each in result.unrepaired]
    return result


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def edit_tokenizer(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tokenizer = document(folder, "tokenizer.json")
    change(tokenizer)
    write_json(folder / "tokenizer.json", tokenizer)


def set_json(file: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / file, **changes)


def plain_piece(folder: Path) -> None:
    """The end tag a piece of the vocabulary, as the others are too, and no added token."""

    def change(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["vocab"] |= {each["content"]: each["id"] for each in tokenizer["added_tokens"]}
        tokenizer["added_tokens"] = [each for each in tokenizer["added_tokens"] if each["content"] != END]

    edit_tokenizer(folder, change)


def no_special_tokens(folder: Path) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        for each in tokenizer["added_tokens"]:
            each.update(special=False)

    edit_tokenizer(folder, change)


def append_eos(folder: Path) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        name = "<|endoftext|>"
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": name, "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [ENDOFTEXT_ID], "tokens": [name]}},
        }

    edit_tokenizer(folder, change)


def write_jinja(text: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")

    return apply


@dataclass(frozen=True)
class Damage:
    """One way to break the folder, the rule that finds it, and the change that repairs it."""

    rule: str
    apply: Callable[[Path], None]
    file: str
    field: str
    old: str
    new: str
    """Part of what the account has as the new value."""


EOS_DAMAGES = (
    Damage("eos-mismatch", set_json("config.json", eos_token_id=800), "config.json", "eos_token_id", "800", "[802, 80"),
    Damage(
        "eos-mismatch",
        set_json("generation_config.json", eos_token_id=[800]),
        "generation_config.json",
        "eos_token_id",
        "[800]",
        "[802, 800]",
    ),
    Damage(
        "eos-mismatch",
        set_json("tokenizer_config.json", eos_token="<|endoftext|>"),
        "tokenizer_config.json",
        "eos_token",
        "<|endoftext|>",
        END,
    ),
    Damage(
        "eos-mismatch",
        set_json("special_tokens_map.json", eos_token="<|endoftext|>"),
        "special_tokens_map.json",
        "eos_token",
        "<|endoftext|>",
        END,
    ),
    Damage("eos-mismatch", append_eos, "tokenizer.json", "post_processor.single", '[{"Sequence"', '[{"Sequence"'),
)
OTHER_DAMAGES = (
    Damage(
        "eos-mismatch",
        set_json("added_tokens.json", **{END: 801, "[PAD]": 803}),
        "added_tokens.json",
        END,
        "801",
        str(END_ID),
    ),
    Damage("vocab-overflow", lambda _: None, "added_tokens.json", "[PAD]", "803", "nothing"),
    Damage(
        "template-conflict",
        write_jinja(CHATML.replace("\\n", " ")),
        "tokenizer_config.json",
        "chat_template",
        "{% for",
        "{% for",
    ),
    Damage("token-split", plain_piece, "tokenizer.json", f"added_tokens.{END}", "nothing", '"special": true'),
    Damage(
        "tokenizer-class",
        set_json("tokenizer_config.json", tokenizer_class="TokenizersBackend"),
        "tokenizer_config.json",
        "tokenizer_class",
        "TokenizersBackend",
        "PreTrainedTokenizerFast",
    ),
    Damage(
        "tie-conflict",
        set_json("config.json", tie_word_embeddings=True),
        "config.json",
        "tie_word_embeddings",
        "true",
        "false",
    ),
)


@pytest.mark.parametrize("damages", [EOS_DAMAGES, OTHER_DAMAGES], ids=["eos", "others"])
def test_the_rules_are_silent_after_the_repair_and_each_change_is_told(
    damages: tuple[Damage, ...], healthy: Path, tmp_path: Path
) -> None:
    """Several at once: each must be found among the others, and none may stand in another's way."""
    source = copy_of(healthy, tmp_path / "broken")
    write_json(source / "added_tokens.json", {START: 801, END: END_ID})
    for damage in damages:
        damage.apply(source)
    assert rules(source) == {damage.rule for damage in damages}
    result = repaired(source, tmp_path / "out")
    assert rules(tmp_path / "out") == set()
    assert result.unrepaired == ()
    told = {(change.file, change.field): change for change in result.changes}
    for damage in damages:
        change = told[damage.file, damage.field]
        assert change.old.startswith(damage.old)
        assert damage.new in change.new
        assert change.old != change.new
        assert change.rule in {each.rule for each in damages if each.file == damage.file}
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()


def test_a_healthy_model_is_copied_as_the_same_model(healthy: Path, tmp_path: Path) -> None:
    result = repaired(healthy, tmp_path / "out")
    assert {change.rule for change in result.changes} == {""}
    before, after = derive(open_checkpoint(healthy)), derive(open_checkpoint(tmp_path / "out"))
    assert compare(before, after) == ()
    assert before.stop_ids == after.stop_ids
    ids = torch.tensor([[1, 2, 3, END_ID]])
    logits = [
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
        for folder in (healthy, tmp_path / "out")
    ]
    assert torch.equal(*logits)


def test_every_reader_finds_stops_template_rope_and_type(healthy: Path, tmp_path: Path) -> None:
    source = copy_of(healthy, tmp_path / "source")
    (source / "generation_config.json").unlink()
    repair(str(source), tmp_path / "out")
    config = document(tmp_path / "out", "config.json")
    assert document(tmp_path / "out", "generation_config.json")["eos_token_id"] == config["eos_token_id"]
    assert config["rope_parameters"]["rope_theta"] == config["rope_theta"] == 1e6
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    inline = document(tmp_path / "out", "tokenizer_config.json")["chat_template"]
    assert inline == (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8") == CHATML


def test_a_conflict_is_settled_by_the_file_that_transformers_takes(healthy: Path, tmp_path: Path) -> None:
    source = copy_of(healthy, tmp_path / "source")
    newer = CHATML.replace("\\n", " ")
    write_jinja(newer)(source)
    repair(str(source), tmp_path / "out")
    assert document(tmp_path / "out", "tokenizer_config.json")["chat_template"] == newer


def test_tags_that_are_plain_added_tokens_become_special(healthy: Path, tmp_path: Path) -> None:
    source = copy_of(healthy, tmp_path / "source")
    no_special_tokens(source)
    result = repaired(source, tmp_path / "out")
    added = {each["content"]: each["special"] for each in document(tmp_path / "out", "tokenizer.json")["added_tokens"]}
    assert added == {"<|endoftext|>": False, START: True, END: True}
    assert any(change.field == f"added_tokens.{END}.special" for change in result.changes)


def test_equal_tensors_stay_tied(tmp_path: Path) -> None:
    source = bpe(tmp_path / "source", tied=True)
    edit_weights(source, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    repair(str(source), tmp_path / "out")
    assert document(tmp_path / "out", "config.json")["tie_word_embeddings"] is True


def test_files_that_are_no_part_of_the_model_are_told_and_stay_behind(healthy: Path, tmp_path: Path) -> None:
    source = copy_of(healthy, tmp_path / "source")
    for name in ("notes.txt", "README.md", "LICENSE"):
        (source / name).write_text("hello", encoding="utf-8")
    result = repair(str(source), tmp_path / "out")
    assert result.left_out == ("notes.txt",)
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == "hello"


def test_what_cannot_be_repaired_is_told_with_its_reason(healthy: Path, tmp_path: Path) -> None:
    source = copy_of(healthy, tmp_path / "source")
    edit_weights(source, lambda tensors: tensors[HEAD][3].fill_(torch.nan))
    result = repaired(source, tmp_path / "out")
    assert [each.finding.rule for each in result.unrepaired] == ["weight-nan"]
    assert "in no file" in result.unrepaired[0].reason
    assert not result.whole
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()


REFUSED: dict[str, Callable[[Path], None]] = {
    "template-missing": set_json("tokenizer_config.json", chat_template=None),
    "remote-code": set_json("config.json", auto_map={"AutoModel": "model.Model"}),
    "source-quantized": set_json("config.json", quantization_config={"quant_method": "gptq"}),
    "source-incomplete": lambda folder: (folder / WEIGHTS).unlink(),
}


@pytest.mark.parametrize("rule", REFUSED)
def test_no_copy_is_made_of_what_is_no_chat_model(rule: str, healthy: Path, tmp_path: Path) -> None:
    source = copy_of(healthy, tmp_path / "source")
    REFUSED[rule](source)
    with pytest.raises(Refusal) as refused:
        repair(str(source), tmp_path / "out")
    assert rule in {item.rule for item in refused.value.findings}
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_only_an_empty_place_outside_the_source_is_written_to(healthy: Path, tmp_path: Path) -> None:
    source = copy_of(healthy, tmp_path / "source")
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for place in (source, source / "inside", tmp_path, tmp_path / "file"):
        with pytest.raises(HermetiqError) as refused:
            repair(str(source), place)
        assert refused.value.remedy
    assert contents(source) == contents(healthy)


def test_an_interrupted_repair_leaves_nothing(healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(what: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repair(str(healthy), tmp_path / "out", tick=stop)
    assert list(tmp_path.iterdir()) == []
