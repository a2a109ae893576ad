"""A card that the Hub accepts, that says what is so, and whose code runs as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from huggingface_hub import ModelCard
from huggingface_hub.constants import ENDPOINT

from hermetiq.errors import HermetiqError
from hermetiq.manifest import Calibration, Ending, Manifest
from hermetiq.publish import own_text, prepare
from hermetiq.publish.card import card
from hermetiq.publish.markdown import block, code, plain, without_paths
from hermetiq.repair import Change
from tests.fixtures.hermes import CHATS
from tests.publish.release import SPECS, provenance, small_export

STUB = Path(__file__).with_name("exllamav2_stub")


def cards(folder: Path, **options: object) -> dict[str, str]:
    job = prepare(folder, "ada/Hermes", **{"base_model": "ada/Hermes-Fine", **options})  # type: ignore[arg-type]
    return {repo.id.rpartition("-")[2]: card(job.release, repo, own_text.EMPTY) for repo in job.plan.repos}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("release")
    small_export(folder)
    return cards(folder)


@pytest.fixture(scope="module")
def hermes_cards(exported_hermes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Cards of the model that answers, as if it had been exported to every format."""
    folder = tmp_path_factory.mktemp("hermes-release")
    source = Manifest.read(exported_hermes).source
    made = small_export(folder)
    source = replace(source, provenance=replace(source.provenance, license="apache-2.0"))
    replace(made, source=source).write(folder)
    return cards(folder)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    ("repo", "library", "tags"),
    [
        ("GGUF", "gguf", {"gguf", "llama.cpp"}),
        ("GPTQ", "transformers", {"gptq", "4-bit"}),
        ("AWQ", "transformers", {"awq", "4-bit"}),
        ("EXL2", "exllamav2", {"exl2", "exllamav2"}),
    ],
)
def test_the_hub_reads_the_front_matter_back(written: dict[str, str], repo: str, library: str, tags: set[str]) -> None:
    data = ModelCard(written[repo]).data.to_dict()
    assert set(data.pop("tags")) == {*tags, "conversational", "chatml", "hermetiq"}
    assert data == {
        "base_model": "ada/Hermes-Fine",
        "base_model_relation": "quantized",
        "quantized_by": "ada",
        "pipeline_tag": "text-generation",
        "library_name": library,
        "license": "apache-2.0",
    }
    assert yaml.safe_load(written[repo].split("---")[1])["license"] == "apache-2.0"


def test_every_artifact_has_its_line_of_figures(written: dict[str, str]) -> None:
    assert f"| [`Hermes-Q4_K_M.gguf`]({ENDPOINT}/ada/Hermes-GGUF/tree/main) | `gguf:Q4_K_M` |" in written["GGUF"]
    assert "| 4.50 | 0.0123 | 98.7% | -0.010 | 12/12 |" in written["GGUF"]
    assert f"[`3.0bpw`]({ENDPOINT}/ada/Hermes-EXL2/tree/3.0bpw)" in written["EXL2"]
    assert "tree/gptq-8bit-g128" in written["GPTQ"]


def test_the_prompt_is_what_the_template_prints(written: dict[str, str]) -> None:
    (shown,) = [text for text in blocks(written["AWQ"], "") if "im_start" in text]
    assert shown.endswith("<|im_start|>user\nAnd of Italy?<|im_end|>\n<|im_start|>assistant\n")
    assert "A turn ends with `<|im_end|>` (id 32000); stop on the ids 2, 32000." in written["AWQ"]


def test_every_runtime_is_told_the_stops(written: dict[str, str]) -> None:
    assert "llama-server --model ./Hermes-Q8_0.gguf" in written["GGUF"]
    assert "FROM ./Hermes-Q8_0.gguf" in written["GGUF"]
    assert '"stop_token_ids": [32000, 2]' in written["GPTQ"]
    assert "stop_conditions=[32000, 2]" in written["EXL2"]
    assert "hf download ada/Hermes-EXL2 --revision 4.65bpw --local-dir Hermes-EXL2-4.65bpw" in written["EXL2"]


def test_what_does_not_load_it_is_said_with_its_reason(written: dict[str, str]) -> None:
    assert "exl2 is a legacy format" in written["EXL2"]
    assert re.search(
        r"`gptq:8bit-g128`: .*; not exllamav2, which takes every GPTQ folder for one of 4 bits", written["GPTQ"]
    )
    assert "not exllamav2" not in written["GPTQ"].split("`gptq:4bit-g64`: ")[1].splitlines()[0]


def test_calibration_provenance_and_reasons_stand_on_the_card(tmp_path: Path) -> None:
    made = small_export(
        tmp_path, ("awq:4bit-g64",),
        made_of=provenance(merge_recipe="models:\n- model: /home/ada/m1\n```\nslices", adapter="LimaRP"),
    )  # fmt: skip
    used = Calibration("built-in", 7, "c" * 64, 128, 120, 8, 61440, 0.25, serves=("awq-4bit-g64",))
    change = Change("eos-mismatch", "config.json", "eos_token_id", "2", "32000", "It closes no turn.")
    ending = Ending(104, source=-1.0, rounded=-1.1875, settled=-0.999)
    settled = tuple(replace(item, ending=ending) for item in made.artifacts)
    replace(made, artifacts=settled, calibration=used, verification={}, repairs=(change,)).write(tmp_path)
    text = cards(tmp_path, force="for a | bug <b>report</b>", licence_of=lambda name: None)["AWQ"]
    assert "120 rows, 61440 tokens of the corpus `built-in`" in text
    assert "as in the source; nats apart: `main` -0.188 before, +0.001 since." in text
    assert "Reason given: for a \\| bug &lt;b&gt;report&lt;/b&gt;." in text
    assert "`awq-4bit-g64`: never verified" in text
    assert "quantized by hermetiq" in text
    assert "adapter merged at load: `LimaRP`" in text
    assert "````yaml\nmodels:\n- model: m1\n```\nslices\n````" in text
    assert "- `config.json`: `eos_token_id` from `2` to `32000`. It closes no turn." in text
    assert "/home" not in text


def test_figures_of_other_bytes_are_not_shown(tmp_path: Path) -> None:
    made = small_export(tmp_path, ("awq:4bit-g64",))
    (found,) = made.verification.values()
    replace(made, verification={"awq-4bit-g64": replace(found, sha256="0" * 64)}).write(tmp_path)
    text = cards(tmp_path, force="for a bug report")["AWQ"]
    assert "`awq-4bit-g64`: other bytes were verified" in text
    assert "0.0123" not in text


def test_a_model_that_is_on_no_hub_has_no_base(tmp_path: Path) -> None:
    small_export(tmp_path, SPECS[:1])
    data = ModelCard(cards(tmp_path, base_model="none")["GGUF"]).data.to_dict()
    assert not {"base_model", "base_model_relation"} & data.keys()
    with pytest.raises(HermetiqError, match="'Hermes' does not say which model on the Hub was quantized"):
        cards(tmp_path, base_model=None)


def test_text_of_a_checkpoint_is_no_markup() -> None:
    assert plain("<b>|*x*\n[a](b)") == "&lt;b&gt;\\|\\*x\\* \\[a\\]\\(b\\)"
    assert code("a`b") == "``a`b``"
    assert block("x\n````\ny") == "`````\nx\n````\ny\n`````"
    assert without_paths("- model: /home/ada/models/m1 # and C:\\Users\\ada\\m2, a/b") == "- model: m1 # and m2, a/b"


def run(script: str, folder: Path, *path: Path) -> str:
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def asked(script: str) -> str:
    """The card's script with a question that the small model knows."""
    question = "What is the capital of France?"
    assert question in script
    return script.replace(question, str(CHATS[0].messages[0]["content"]))


def test_the_code_for_transformers_runs(hermes_cards: dict[str, str], trained_hermes: Path, tmp_path: Path) -> None:
    (script,) = blocks(hermes_cards["GPTQ"], "python")
    assert blocks(hermes_cards["AWQ"], "python") == [script.replace("Hermes-GPTQ", "Hermes-AWQ")]
    # The packed weights want a package that is not here; the same model stands in with plain ones.
    shutil.copytree(trained_hermes, tmp_path / "Hermes-GPTQ")
    assert run(asked(script), tmp_path).strip() == CHATS[0].answer


def test_the_code_for_llama_cpp_python_runs(
    hermes_cards: dict[str, str], exported_hermes: Path, tmp_path: Path
) -> None:
    (script,) = blocks(hermes_cards["GGUF"], "python")
    shutil.copy(exported_hermes / "gguf" / "tiny-hermes-Q8_0.gguf", tmp_path / "Hermes-Q8_0.gguf")
    assert run(asked(script), tmp_path).strip() == CHATS[0].answer


def test_the_code_for_exllamav2_runs_against_its_interface(
    hermes_cards: dict[str, str], trained_hermes: Path, tmp_path: Path
) -> None:
    (script,) = blocks(hermes_cards["EXL2"], "python")
    shutil.copytree(trained_hermes, tmp_path / "Hermes-EXL2-4.65bpw")
    told = run(script, tmp_path, STUB)
    assert "'stop_conditions': [32000" in told
    assert "<|im_start|>user\\nWhat is the capital of France?<|im_end|>\\n<|im_start|>assistant\\n" in told
    assert "./Hermes-EXL2-4.65bpw" in told
