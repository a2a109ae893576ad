"""Lelantos-7B: a merge of merges onto a ChatML model, whose EOS came out as `</s>`.

Its author remapped the token by editing tokenizer JSON by hand. Here the model is as MergeKit leaves it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.models import copy_of, edit_json
from tests.fixtures.tokenizers import CHATML, mistral_tokenizer
from tests.repair.test_repair import contents, document
from tests.scenarios.published import with_card
from tests.scenarios.shipping import (
    CHATML_TAGS,
    IM_END,
    IM_START,
    export,
    found,
    hermetiq,
    require_contract,
    require_verified,
)

EOS, EOS_ID = "</s>", 2
STATE_EOS = {"config.json", "generation_config.json", "special_tokens_map.json", "tokenizer_config.json"}
RECIPE = """\
merge_method: dare_ties
base_model: openaccess-ai-collective/DPOpenHermes-7B-v2
models:
  - model: openaccess-ai-collective/DPOpenHermes-7B-v2
  - model: jan-hq/stealth-v1.2
    parameters: {density: 0.3, weight: 0.2}
dtype: bfloat16
"""


@pytest.fixture(scope="module")
def lelantos(trained_hermes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The EOS, the added tokens and the template's BOS are those of other parents than the weights are."""
    folder = copy_of(trained_hermes, tmp_path_factory.mktemp("lelantos") / "Lelantos-7B")
    for file in ("config.json", "generation_config.json"):
        edit_json(folder / file, eos_token_id=EOS_ID)
    edit_json(folder / "special_tokens_map.json", eos_token=EOS)
    template = "{{ bos_token }}" + CHATML
    edit_json(folder / "tokenizer_config.json", eos_token=EOS, added_tokens_decoder={}, chat_template=template)
    (folder / "added_tokens.json").unlink()
    (folder / "mergekit_config.yml").write_text(RECIPE, encoding="utf-8")
    return with_card(folder, {"license": "apache-2.0", "base_model": "mistralai/Mistral-7B-v0.1"})


def test_inspect_names_every_file_whose_eos_is_not_the_end_of_the_turn(lelantos: Path) -> None:
    told = found(lelantos)
    assert told == {
        "eos-mismatch": STATE_EOS,
        "double-bos": {"tokenizer_config.json"},
        "spm-stale": {"tokenizer.model"},
    }
    assert hermetiq("inspect", lelantos).status == 1


def test_a_parent_that_still_has_the_tag_says_what_eos_should_be(lelantos: Path, trained_hermes: Path) -> None:
    stealth = mistral_tokenizer().folder
    findings = hermetiq("inspect", lelantos, "--parent", trained_hermes, "--parent", stealth, "--json").json["findings"]
    (eos,) = [item for item in findings if item["rule"] == "merge-vocab"]
    assert (eos["field"], eos["found"]) == ("eos_token", EOS)
    assert eos["expected"] == f"<|im_end|> as in {trained_hermes}"
    # Without a parent at hand, the recipe says whom to compare with.
    alone = hermetiq("inspect", lelantos, "--json").json["findings"]
    parents = [item["found"] for item in alone if item["rule"] == "merge-vocab"]
    assert [name.partition(",")[0] for name in parents] == [
        "openaccess-ai-collective/DPOpenHermes-7B-v2",
        "jan-hq/stealth-v1.2",
    ]


def test_a_repair_remaps_it_in_every_file_and_is_done_once(lelantos: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    account: Any = hermetiq("repair", lelantos, out, "--json").json
    assert account["unrepaired"] == []
    assert {"eos-mismatch", "double-bos", "spm-stale"} <= {change["rule"] for change in account["changes"]}
    assert document(out, "config.json")["eos_token_id"] == [IM_END, EOS_ID]
    assert document(out, "generation_config.json")["eos_token_id"] == [IM_END, EOS_ID]
    assert document(out, "special_tokens_map.json")["eos_token"] == "<|im_end|>"
    config = document(out, "tokenizer_config.json")
    assert config["eos_token"] == "<|im_end|>"
    assert config["add_bos_token"] is False
    assert config["added_tokens_decoder"][str(IM_START)]["content"] == "<|im_start|>"
    assert (out / "tokenizer.model").exists()
    assert found(out) == {}
    assert hermetiq("repair", out, again, "--json").json["changes"] == []
    assert contents(again) == contents(out)


def test_the_remapped_model_ships_in_every_format(lelantos: Path, tmp_path: Path) -> None:
    refused = hermetiq("export", lelantos, tmp_path / "out", "--to", "gguf:Q8_0")
    assert (refused.status, "eos-mismatch" in refused.err) == (2, True)
    before = contents(lelantos)
    manifest = export(lelantos, tmp_path / "out", "--repair")
    require_verified(lelantos, tmp_path / "out")
    require_contract(
        tmp_path / "out",
        terminator="<|im_end|>",
        terminator_id=IM_END,
        stop_ids=(EOS_ID, IM_END),
        tags={"<s>": 1, **CHATML_TAGS},
    )
    assert contents(lelantos) == before
    provenance = manifest.source.provenance
    assert (provenance.merge_recipe, provenance.license) == (RECIPE, "apache-2.0")
    assert provenance.base_models == ("mistralai/Mistral-7B-v0.1",)
    generation = json.loads((tmp_path / "out/gptq-4bit-g64/generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == [IM_END, EOS_ID]
