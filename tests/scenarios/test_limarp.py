"""LimaRP: a LoRA of rank 256 on every linear layer of Mistral, in the extended Alpaca form that only its card tells.

It was trained with a length modifier behind `### Response:`, ends its turns with EOS, and what a model that runs on
would say next is plain text: `### Input:`. People run it in SillyTavern, which needs both.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hermetiq.manifest import Manifest
from tests.chat.templates import ALPACA_EXTENDED
from tests.fixtures import limarp
from tests.scenarios.shipping import export, hermetiq, require_contract, require_verified

EOS, EOS_ID = "</s>", 2


@pytest.fixture(scope="module")
def base() -> Path:
    return limarp.limarp()[0]


@pytest.fixture(scope="module")
def lora() -> Path:
    return limarp.limarp()[1]


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """As the card describes it, written down by the user."""
    file = tmp_path / "limarp.jinja"
    file.write_text(ALPACA_EXTENDED, encoding="utf-8")
    return file


def test_without_its_prompt_format_it_is_no_chat_model(base: Path, lora: Path, tmp_path: Path) -> None:
    refused = hermetiq("export", base, tmp_path / "out", "--to", "gguf:Q8_0", "--adapter", lora)
    assert refused.status == 2
    assert "template-missing" in refused.err
    assert "--chat-template" in refused.err


def test_base_and_adapter_ship_as_one_model(base: Path, lora: Path, template: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = export(base, out, "--adapter", lora, "--repair", "--chat-template", template)
    assert manifest.source.contract.prompt_format == "alpaca"
    assert manifest.source.provenance.adapter == "limarp-lora"
    # The base alone is another model, and a verification against it says so.
    assert hermetiq("verify", out, "--source", base).status == 2
    require_verified(base, out, "--adapter", lora)
    require_contract(
        out,
        terminator=EOS,
        terminator_id=EOS_ID,
        stop_ids=(EOS_ID,),
        tags={EOS: EOS_ID},
        stop_strings=("### Instruction:", "### Input:"),
    )
    assert Manifest.read(out).chat_template == ALPACA_EXTENDED
    modelfile = hermetiq("recipes", out, "--runtime", "ollama").out
    assert 'PARAMETER stop "### Input:"' in modelfile
