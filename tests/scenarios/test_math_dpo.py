"""OpenHermes-2.5 after a DPO on mathematics: a fine-tune of a fine-tune, whose template is prose in its card alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.models import edit_json
from tests.fixtures.tokenizers import CHATML
from tests.scenarios.published import relative, with_card
from tests.scenarios.shipping import CHATML_TAGS, IM_END, export, found, hermetiq, require_contract, require_verified

PARENT = "teknium/OpenHermes-2.5-Mistral-7B"
CARD = """\
# Prompt Format

OpenHermes 2.5 uses ChatML as the prompt format:

    <|im_start|>system
    You are "Hermes 2".<|im_end|>
    <|im_start|>user
    Hello, who are you?<|im_end|>
    <|im_start|>assistant
"""


@pytest.fixture(scope="module")
def math_dpo(trained_hermes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = relative(trained_hermes, tmp_path_factory.mktemp("math") / "OpenHermes-2.5-math-dpo", seed=7)
    edit_json(folder / "tokenizer_config.json", chat_template=None)
    return with_card(folder, {"license": "apache-2.0", "base_model": PARENT}, CARD)


def test_a_card_is_no_template(math_dpo: Path, tmp_path: Path) -> None:
    assert found(math_dpo) == {"template-missing": {"chat_template.jinja"}}
    for command in (
        ("export", math_dpo, tmp_path / "out", "--to", "gguf:Q8_0"),
        ("repair", math_dpo, tmp_path / "out"),
    ):
        refused = hermetiq(*command)
        assert refused.status == 2
        assert "template-missing" in refused.err
        assert "from the parent's folder with --chat-template PATH" in refused.err
        assert not (tmp_path / "out").exists()


def test_with_the_parents_template_it_ships_in_every_format(
    math_dpo: Path, trained_hermes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    manifest = export(math_dpo, out, "--repair", "--chat-template", trained_hermes)
    require_verified(math_dpo, out)
    require_contract(out, terminator="<|im_end|>", terminator_id=IM_END, stop_ids=(IM_END,), tags=CHATML_TAGS)
    assert manifest.source.contract.template == CHATML
    # Its base is the fine-tune that it was made from, not Mistral.
    assert manifest.source.provenance.base_models == (PARENT,)
    assert {change.rule for change in manifest.repairs or ()} >= {"template-missing"}
