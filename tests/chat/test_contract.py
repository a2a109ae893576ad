"""The contract says what the tokenizer and the template do, whatever the fields of the files claim."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from hermetiq.chat.contract import ChatContract, Tag, compare, derive, special_ids, to_json
from hermetiq.checkpoint import Checkpoint, open_checkpoint
from hermetiq.errors import Refusal
from hermetiq.model import SpecialIds
from tests.chat import templates
from tests.fixtures.models import copy_of, edit_json, tiny_checkpoint

IM_END, IM_START = Tag("<|im_end|>", 32000), Tag("<|im_start|>", 32001)
BOS, EOS = Tag("<s>", 1), Tag("</s>", 2)


@pytest.fixture(scope="module")
def checkpoint(hermes: Path) -> Checkpoint:
    return open_checkpoint(hermes)


@pytest.fixture(scope="module")
def contract(checkpoint: Checkpoint) -> ChatContract:
    return derive(checkpoint)


def with_template(checkpoint: Checkpoint, template: str, *, eos_token: str = "<|im_end|>") -> Checkpoint:
    other = copy.copy(checkpoint)
    other.templates = {"chat_template.jinja": template}
    other.tokenizer = replace(checkpoint.tokenizer, eos_token=eos_token)
    return other


def test_the_hermes_family(contract: ChatContract) -> None:
    assert (contract.terminator, contract.terminator_id, contract.stop_ids) == ("<|im_end|>", 32000, (32000,))
    assert contract.tags == (IM_END, IM_START)
    assert (contract.bos_token_id, contract.add_bos, contract.pad_token_id, contract.unk_token_id) == (1, True, None, 0)
    assert (contract.tokens, contract.rows) == (32002, 32002)
    stated = {(source.file, source.field): source.ids for source in contract.eos_sources}
    assert stated == {
        ("config.json", "eos_token_id"): (32000,),
        ("generation_config.json", "eos_token_id"): (32000,),
        ("tokenizer_config.json", "eos_token"): (32000,),
        ("special_tokens_map.json", "eos_token"): (32000,),
        ("added_tokens.json", "<|im_end|>"): (32000,),
        ("tokenizer.model", "eos_id"): (2,),
        ("tokenizer_config.json", "chat_template"): (32000,),
    }


def test_a_byte_level_model_without_bos_but_with_a_list_of_stops(tmp_path: Path) -> None:
    contract = derive(open_checkpoint(tiny_checkpoint(tmp_path / "qwen", family="qwen2", tokenizer="bpe", rows=832)))
    assert (contract.terminator, contract.terminator_id, contract.stop_ids) == ("<|im_end|>", 802, (800, 802))
    assert (contract.bos_token_id, contract.add_bos, contract.pad_token_id) == (None, False, 800)
    assert (contract.tokens, contract.rows) == (803, 832)


@pytest.mark.parametrize(
    ("style", "eos_token", "terminator", "tags"),
    [
        ("CHATML", "<|im_end|>", IM_END, (IM_END, IM_START)),
        ("CHATML", "</s>", IM_END, (IM_END, IM_START)),
        ("CHATML_WITH_DEFAULT_SYSTEM", "</s>", IM_END, (IM_END, IM_START)),
        ("CHATML_LAST_TURN_OPEN", "</s>", IM_END, (IM_END, IM_START)),
        ("TRIMMING", "</s>", IM_END, (IM_END, IM_START)),
        ("TOOLS", "</s>", IM_END, (IM_END, IM_START)),
        ("MISTRAL", "</s>", EOS, (BOS, EOS)),
        ("LLAMA_2", "</s>", EOS, (BOS, EOS)),
        ("ZEPHYR", "</s>", EOS, (EOS,)),
        ("ALPACA", "</s>", EOS, (EOS,)),
    ],
)
def test_the_terminator_is_what_closes_the_turn(
    checkpoint: Checkpoint, style: str, eos_token: str, terminator: Tag, tags: tuple[Tag, ...]
) -> None:
    contract = derive(with_template(checkpoint, getattr(templates, style), eos_token=eos_token))
    assert Tag(contract.terminator, contract.terminator_id) == terminator
    assert contract.tags == tags
    assert contract.add_bos is (BOS not in tags)


def test_the_opening_tag_of_the_next_turn_closes_nothing(checkpoint: Checkpoint) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    assert derive(with_template(checkpoint, template, eos_token="</s>")).terminator == "</s>"


def test_a_template_that_closes_turns_with_the_tag_of_the_user(checkpoint: Checkpoint) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_end|>' if m.role == 'user' else '<|im_start|>' }}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
    )
    assert derive(with_template(checkpoint, template, eos_token="</s>")).terminator == "<|im_end|>"


def test_the_jinja_file_goes_before_the_inline_template(checkpoint: Checkpoint) -> None:
    other = with_template(checkpoint, templates.MISTRAL, eos_token="</s>")
    other.templates = {"tokenizer_config.json": templates.CHATML, **other.templates}
    assert derive(other).terminator == "</s>"


@pytest.mark.parametrize(
    ("template", "rule", "found"),
    [
        ("", "template-missing", "no chat template"),
        ("{{ messages | length }}", "template-missing", "leaves out 4 of 4 messages"),
        ("{% for m in messages %}", "template-missing", "unexpected 'end of template'|Unexpected end of template"),
        ("{{ raise_exception('no') }}", "template-missing", "no"),
        (
            "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}",
            "template-unsafe",
            "CPU time",
        ),
        ("{% for m in messages %}<|u|>{{ m.content }}<|endofturn|>{% endfor %}", "template-tokens", r"<\|endofturn\|>"),
    ],
)
def test_without_a_contract_there_is_a_refusal(checkpoint: Checkpoint, template: str, rule: str, found: str) -> None:
    with pytest.raises(Refusal, match=found) as refusal:
        derive(with_template(checkpoint, template))
    assert [(item.rule, item.file) for item in refusal.value.findings] == [(rule, "chat_template.jinja")]


def test_a_chat_that_nothing_closes_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(Refusal, match="eos-mismatch"):
        derive(with_template(checkpoint, templates.ALPACA_OPEN, eos_token="<|absent|>"))


@pytest.mark.parametrize(
    ("stated", "stops"),
    [
        (2, (2, 32000)),
        ([2, 32000], (2, 32000)),
        ([32001, None, True], (32000, 32001)),
        ("32000", (32000,)),
        ({}, (32000,)),
    ],
)
def test_stop_ids_of_every_shape(checkpoint: Checkpoint, stated: Any, stops: tuple[int, ...]) -> None:
    other = copy.copy(checkpoint)
    other.documents = {**checkpoint.documents, "generation_config.json": {"eos_token_id": stated}}
    assert derive(other).stop_ids == stops


def test_the_tokenizer_that_appends_eos_states_it(hermes: Path, tmp_path: Path) -> None:
    folder = copy_of(hermes, tmp_path / "appends")
    document = json.loads((folder / "tokenizer.json").read_text())
    processor = document["post_processor"]
    processor["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    processor["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    edit_json(folder / "tokenizer.json", post_processor=processor)
    sources = {source.file: source for source in derive(open_checkpoint(folder)).eos_sources}
    assert (sources["tokenizer.json"].field, sources["tokenizer.json"].ids) == ("post_processor", (2,))


def test_a_contract_equals_itself_and_provenance_is_not_compared(contract: ChatContract) -> None:
    assert compare(contract, replace(contract, eos_sources=())) == ()


CHANGES: Mapping[str, Any] = {
    "template": "{{ messages }}",
    "terminator": "</s>",
    "terminator_id": 2,
    "stop_ids": (2, 32000),
    "tags": (IM_END,),
    "bos_token_id": None,
    "add_bos": False,
    "pad_token_id": 0,
    "unk_token_id": None,
    "tokens": 32000,
    "rows": 32064,
    "prompt_format": "llama-2",
    "stop_strings": ("[INST]",),
}


def test_every_field_is_compared() -> None:
    assert {*CHANGES, "eos_sources"} == {field.name for field in fields(ChatContract)}


@pytest.mark.parametrize("field", CHANGES)
def test_a_difference_names_its_field(contract: ChatContract, field: str) -> None:
    differences = compare(contract, replace(contract, **{field: CHANGES[field]}))
    assert field in [difference.field for difference in differences]
    assert {difference.field for difference in differences} <= {field, "stop_ids"}


def test_an_artifact_may_stop_on_less_but_not_on_more(contract: ChatContract) -> None:
    source = replace(contract, stop_ids=(2, 3, 32000))
    assert compare(source, replace(contract, stop_ids=(2, 32000))) == ()
    (difference,) = compare(source, replace(contract, stop_ids=(2, 4, 32000)))
    assert (difference.field, difference.source, difference.artifact) == ("stop_ids", "[2, 3, 32000]", "[2, 4, 32000]")
    assert compare(source, replace(contract, stop_ids=(2, 3)))


def test_writers_get_the_terminator_as_eos_and_no_bos_twice(checkpoint: Checkpoint, contract: ChatContract) -> None:
    ids = special_ids(replace(contract, stop_ids=(2, 32000), pad_token_id=7))
    assert ids == SpecialIds(eos=32000, eot=32000, eom=2, bos=1, pad=7, unk=0, add_bos=True, add_eos=False)
    printed = derive(with_template(checkpoint, templates.MISTRAL, eos_token="</s>"))
    assert special_ids(printed).add_bos is False


def test_json_is_stable_and_holds_no_template(contract: ChatContract) -> None:
    first = to_json(contract)
    assert list(first) == [field.name for field in fields(ChatContract)]
    assert json.loads(json.dumps(first)) == first
    assert first["template"]["characters"] == len(contract.template)
    assert first["tags"][0] == {"text": "<|im_end|>", "id": 32000}
    assert first["eos_sources"][1] == {
        "file": "generation_config.json",
        "field": "eos_token_id",
        "found": "32000",
        "ids": [32000],
    }
