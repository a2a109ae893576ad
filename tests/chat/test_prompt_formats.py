"""Every prompt format is told by what its template prints, and held to its terminator, its tags and its stops."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers

from hermetiq.chat.contract import ChatContract
from hermetiq.chat.inspect import inspect
from hermetiq.chat.prompt_formats import FORMATS, recognised
from tests.chat import templates
from tests.fixtures.speakers import SPEAKERS, Speaker, speaking

HEADINGS = ("### Instruction:", "### Input:")
# Name, terminator, stops by text, stop strings, tags.
CONTRACTS: Mapping[str, tuple[str, str, set[str], tuple[str, ...], set[str]]] = {
    "chatml": ("chatml", "<|im_end|>", {"<|im_end|>"}, (), {"<|im_start|>", "<|im_end|>"}),
    "alpaca": ("alpaca", "</s>", {"</s>"}, HEADINGS, {"</s>"}),
    "alpaca-extended": ("alpaca", "</s>", {"</s>"}, HEADINGS, {"</s>"}),
    "llama-2": ("llama-2", "</s>", {"</s>"}, ("[INST]",), {"<s>", "</s>"}),
    "mistral-v1": ("mistral", "</s>", {"</s>"}, ("[INST]",), {"<s>", "</s>"}),
    "mistral-v3": ("mistral", "</s>", {"</s>"}, (), {"<s>", "</s>", "[INST]", "[/INST]"}),
    "mistral-v7": (
        "mistral", "</s>", {"</s>"}, (), {"<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"},
    ),
    "zephyr": ("zephyr", "</s>", {"</s>"}, ("<|user|>", "<|system|>"), {"</s>"}),
    "llama-3": (
        "llama-3", "<|eot_id|>", {"<|end_of_text|>", "<|eot_id|>"}, (),
        {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
    ),
    "gemma": (
        "gemma", "<end_of_turn>", {"<eos>", "<end_of_turn>"}, (), {"<bos>", "<start_of_turn>", "<end_of_turn>"},
    ),
    "phi": (
        "phi", "<|end|>", {"<|endoftext|>", "<|assistant|>", "<|end|>"}, (),
        {"<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"},
    ),
    "phi-4": ("phi-4", "<|im_end|>", {"<|im_end|>"}, (), {"<|im_start|>", "<|im_sep|>", "<|im_end|>"}),
}  # fmt: skip


def texts(folder: Path, ids: tuple[int, ...]) -> set[str]:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return {backend.id_to_token(index) for index in ids}


def contract_of(folder: Path) -> ChatContract:
    contract = inspect(str(folder), weights=False).contract
    assert contract is not None
    return contract


@pytest.mark.parametrize("name", SPEAKERS)
def test_a_well_formed_model_is_recognised_and_has_no_error(name: str, tmp_path: Path) -> None:
    folder = speaking(tmp_path / "model", SPEAKERS[name])
    inspection = inspect(str(folder))
    assert [item for item in inspection.findings if item.severity == "error"] == []
    contract = inspection.contract
    assert contract is not None
    stops, tags = texts(folder, contract.stop_ids), {tag.text for tag in contract.tags}
    found = (contract.prompt_format, contract.terminator, stops, contract.stop_strings, tags)
    assert found == CONTRACTS[name]


def test_every_format_of_the_table_has_a_model() -> None:
    assert {entry[0] for entry in CONTRACTS.values()} == set(FORMATS)


@pytest.mark.parametrize("name", ["gemma", "phi"])
def test_the_base_models_eos_beside_a_list_with_the_terminator_is_a_warning(name: str, tmp_path: Path) -> None:
    """So these families are published; a reader of that one place runs on all the same."""
    findings = inspect(str(speaking(tmp_path / "model", SPEAKERS[name])), select=["eos-mismatch"]).findings
    assert {item.file for item in findings} >= {"tokenizer_config.json", "special_tokens_map.json"}
    assert {item.severity for item in findings} == {"warning"}


BROKEN: Mapping[str, tuple[Speaker, str, str, str]] = {
    # Speaker, rule, file, part of what is found.
    "llama-3 ends with the base model's EOS": (
        replace(SPEAKERS["llama-3"], eos="<|end_of_text|>", generation=()),
        "eos-mismatch", "generation_config.json", "<|end_of_text|>",
    ),
    "gemma without its list": (
        replace(SPEAKERS["gemma"], config=(), generation=()), "eos-mismatch", "config.json", "<eos>",
    ),
    "phi without its list": (
        replace(SPEAKERS["phi"], generation=()), "eos-mismatch", "tokenizer_config.json", "<|endoftext|>",
    ),
    "chatml with another EOS and a good list": (
        replace(SPEAKERS["chatml"], eos="</s>", generation=("</s>", "<|im_end|>")),
        "eos-mismatch", "config.json", "</s>",
    ),
    "mistral with a tag of ChatML for EOS": (
        replace(SPEAKERS["mistral-v3"], template=templates.MISTRAL_V3.replace("eos_token", "'</s>'"), eos="<|im_end|>"),
        "eos-mismatch", "config.json", "<|im_end|>",
    ),
    "zephyr with another EOS": (
        replace(SPEAKERS["zephyr"], template=templates.ZEPHYR.replace("eos_token", "'</s>'"), eos="<|im_end|>"),
        "eos-mismatch", "config.json", "<|im_end|>",
    ),
    "alpaca that never ends an answer": (
        replace(SPEAKERS["alpaca"], template=templates.ALPACA_OPEN),
        "turn-end", "tokenizer_config.json", "no token behind the answer of a chat in the format alpaca",
    ),
    "llama-2 that never ends an answer": (
        replace(SPEAKERS["llama-2"], template=templates.LLAMA_2.replace(" + eos_token", "")),
        "turn-end", "tokenizer_config.json", "no token behind the answer of a chat in the format llama-2",
    ),
    "gemma without its tag": (
        replace(SPEAKERS["gemma"], tags=("<bos>", "<eos>", "<start_of_turn>"), config=(), generation=()),
        "template-tokens", "tokenizer_config.json", "<end_of_turn> closes the assistant's turn",
    ),
    "phi with a tag of plain text": (
        replace(SPEAKERS["phi"], tags=("<|system|>", "<|assistant|>", "<|end|>")),
        "template-tokens", "tokenizer_config.json", "<|user|> not in the vocabulary",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_an_error_that_says_where(name: str, tmp_path: Path) -> None:
    speaker, rule, file, found = BROKEN[name]
    findings = inspect(str(speaking(tmp_path / "model", speaker)), weights=False).findings
    errors = [item for item in findings if item.severity == "error"]
    assert {item.rule for item in errors} == {rule}
    assert any(item.file == file and found in item.found for item in errors)
    assert all(item.repair for item in errors)


def test_another_end_than_the_formats_own_is_a_warning(tmp_path: Path) -> None:
    """A model may be trained so; nothing in the folder can tell."""
    template = templates.LLAMA_3.replace("'<|eot_id|>'", "'<|end_of_text|>'")
    speaker = replace(SPEAKERS["llama-3"], template=template, eos="<|end_of_text|>", generation=())
    (item,) = inspect(str(speaking(tmp_path / "model", speaker)), weights=False).findings
    assert (item.rule, item.severity, item.expected) == ("turn-end", "warning", "<|eot_id|>")
    assert "<|end_of_text|> behind the answer of a chat in the format llama-3" in item.found


def test_what_opens_a_turn_is_a_stop_string_only_while_it_is_no_token(tmp_path: Path) -> None:
    tokens = SPEAKERS["mistral-v3"]
    plain = replace(tokens, tags=("<s>", "</s>"))
    assert contract_of(speaking(tmp_path / "plain", plain)).stop_strings == ("[INST]",)
    assert contract_of(speaking(tmp_path / "tokens", tokens)).stop_strings == ()


def test_words_of_a_format_elsewhere_in_a_chat_do_not_make_it_one() -> None:
    chatml = "<|im_start|>{}\n{}<|im_end|>\n"
    quoting = chatml.format("system", "Write ### Response: or [/INST], never <|assistant|>.")
    form = recognised([quoting + chatml.format("user", "{user}") + chatml.format("assistant", "{assistant}")])
    assert form is not None
    assert form.name == "chatml"
    assert recognised(["USER: {user} ASSISTANT: {assistant}</s>"]) is None


def test_a_template_of_no_known_format_keeps_its_contract(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ m.role.upper() + ': ' + m.content + (eos_token if m.role == 'assistant' else ' ') }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
    )
    contract = contract_of(speaking(tmp_path / "other", replace(SPEAKERS["alpaca"], template=template)))
    assert (contract.prompt_format, contract.terminator, contract.stop_strings) == ("other", "</s>", ())


@pytest.mark.parametrize("opening", ["### Response:", "<|im_start|>assistant", "<|end|>", "<|assistant|> ", "[/INST] "])
def test_what_an_untrusted_template_prints_is_searched_in_no_time(opening: str) -> None:
    started = time.perf_counter()
    assert recognised([opening * 50_000]) is None
    assert time.perf_counter() - started < 5
