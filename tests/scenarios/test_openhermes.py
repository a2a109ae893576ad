"""OpenHermes-2.5-Mistral-7B: 32,002 rows, `<|im_end|>` 32000; four formats from one checkpoint, run in LM Studio."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import gguf
import pytest

from hermetiq.manifest import Manifest
from tests.fixtures.models import copy_of
from tests.fixtures.tokenizers import CHATML
from tests.scenarios.published import with_card
from tests.scenarios.shipping import (
    CHATML_TAGS,
    FORMATS,
    IM_END,
    export,
    found,
    hermetiq,
    require_contract,
    require_verified,
)

ROWS = 32_002


@pytest.fixture(scope="module")
def openhermes(trained_hermes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_of(trained_hermes, tmp_path_factory.mktemp("openhermes") / "OpenHermes-2.5-Mistral-7B")
    return with_card(folder, {"license": "apache-2.0", "base_model": "mistralai/Mistral-7B-v0.1"})


@pytest.fixture(scope="module")
def out(openhermes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / "out"
    export(openhermes, folder)
    return folder


@pytest.fixture(scope="module")
def recipes(out: Path) -> Mapping[str, str]:
    """The text for each runtime; of the two that read GPTQ and AWQ, the last."""
    return {recipe["runtime"]: recipe["text"] for recipe in hermetiq("recipes", out, "--json").json}


def test_nothing_is_wrong_with_it(openhermes: Path) -> None:
    assert found(openhermes) == {}


def test_all_four_formats_come_from_one_pass_and_are_the_same_model(openhermes: Path, out: Path) -> None:
    manifest = Manifest.read(out)
    assert manifest.calibration is not None
    assert len(manifest.calibration.serves) == len(FORMATS)
    assert (manifest.source.contract.rows, manifest.source.contract.tokens) == (ROWS, ROWS)
    require_verified(openhermes, out)
    require_contract(out, terminator="<|im_end|>", terminator_id=IM_END, stop_ids=(IM_END,), tags=CHATML_TAGS)


def test_lm_studio_has_the_template_from_the_preset_and_the_id_from_the_file(
    out: Path, recipes: Mapping[str, str]
) -> None:
    (template,) = [
        field["value"]["jinjaPromptTemplate"]
        for field in json.loads(recipes["lm-studio"])["operation"]["fields"]
        if field["key"] == "llm.prediction.promptTemplate"
    ]
    assert (template["template"], template["eosToken"]) == (CHATML, "<|im_end|>")
    fields = gguf.GGUFReader(out / "gguf/OpenHermes-2.5-Mistral-7B-Q8_0.gguf").fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == IM_END
    assert fields["tokenizer.ggml.eot_token_id"].contents() == IM_END


@pytest.mark.parametrize("runtime", ["vllm", "transformers", "exllamav2"])
def test_a_runtime_that_takes_ids_is_given_32000(runtime: str, recipes: Mapping[str, str]) -> None:
    assert str(IM_END) in recipes[runtime]
