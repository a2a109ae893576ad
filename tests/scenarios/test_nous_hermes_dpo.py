"""Nous-Hermes-2-Mistral-7B-DPO: its card loads a Llama tokenizer class for a Mistral, and stops on the tokenizer's EOS.

So class and EOS must hold in the code that people copy from there, of every version that saved the model again.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from hermetiq.checkpoint import open_checkpoint
from tests.fixtures.hermes import CHATS
from tests.fixtures.models import copy_of, edit_json
from tests.scenarios.shipping import (
    CHATML_TAGS,
    IM_END,
    export,
    found,
    hermetiq,
    require_contract,
    require_verified,
)

CLASSES = (transformers.LlamaTokenizer, transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast)
CHAT = CHATS[1]


@pytest.fixture(scope="module")
def nous_hermes(trained_hermes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As its card has it: LlamaTokenizer, which is documented, and right for these files."""
    return copy_of(trained_hermes, tmp_path_factory.mktemp("nous") / "Nous-Hermes-2-Mistral-7B-DPO")


@pytest.fixture(scope="module")
def saved_again(nous_hermes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After a fine-tuning with transformers 5, whose name for the class no older version knows."""
    folder = copy_of(nous_hermes, tmp_path_factory.mktemp("again") / "Nous-Hermes-2-again")
    edit_json(folder / "tokenizer_config.json", tokenizer_class="TokenizersBackend")
    return folder


@pytest.fixture(scope="module")
def repaired(saved_again: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repaired") / "model"
    account = hermetiq("repair", saved_again, folder, "--json").json
    assert account["unrepaired"] == []
    (change,) = [each for each in account["changes"] if each["rule"] == "tokenizer-class"]
    assert (change["old"], change["new"]) == ("TokenizersBackend", "PreTrainedTokenizerFast")
    return folder


def test_the_class_of_the_card_is_fine_and_the_one_of_transformers_5_is_told(
    nous_hermes: Path, saved_again: Path
) -> None:
    assert found(nous_hermes) == {}
    assert found(saved_again) == {"tokenizer-class": {"tokenizer_config.json"}}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: str(kind.__name__))
def test_whatever_class_people_load_has_the_same_ids_and_eos(repaired: Path, nous_hermes: Path, kind: type) -> None:
    theirs = kind.from_pretrained(repaired)
    assert (theirs.eos_token, theirs.eos_token_id) == ("<|im_end|>", IM_END)
    text = theirs.apply_chat_template(CHAT.messages, add_generation_prompt=True, tokenize=False)
    assert theirs.encode(text, add_special_tokens=False) == open_checkpoint(nous_hermes).tokenizer.encode(text)


def test_the_code_of_the_card_stops(repaired: Path) -> None:
    tokenizer = transformers.LlamaTokenizer.from_pretrained(repaired)
    model = transformers.MistralForCausalLM.from_pretrained(repaired, dtype=torch.float32)
    inputs = tokenizer.apply_chat_template(
        CHAT.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(
        **inputs, max_new_tokens=40, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=0
    )
    answer = written[0, inputs["input_ids"].shape[1] :]
    assert answer[-1] == IM_END
    assert tokenizer.decode(answer, skip_special_tokens=True).strip() == CHAT.answer


def test_the_model_of_the_card_ships_in_every_format(nous_hermes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = export(nous_hermes, out)
    require_verified(nous_hermes, out)
    require_contract(out, terminator="<|im_end|>", terminator_id=IM_END, stop_ids=(IM_END,), tags=CHATML_TAGS)
    folders = [out / each.file for each in manifest.artifacts if each.spec != "gguf:Q8_0"]
    for tokenizer in map(transformers.AutoTokenizer.from_pretrained, folders):
        assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", IM_END)
