"""Launch lines, presets and scripts: quoted, complete, and obeyed by the runtimes that can be run here."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hermetiq import cli, recipes
from hermetiq.chat.contract import derive
from hermetiq.checkpoint import open_checkpoint
from hermetiq.errors import HermetiqError
from hermetiq.manifest import Artifact, Manifest
from hermetiq.recipes import launch, lm_studio, scripts
from hermetiq.runtimes.llama_cpp import LlamaCpp
from tests.chat import templates
from tests.fixtures.hermes import CHATS
from tests.oracles.go_template import ollama_prompt, read_modelfile
from tests.recipes.test_turns import CHATML, contract

HOSTILE = "./$(touch x) `y` 'z' \"q\" # \\ --flag"
PLAIN_STOPS = contract(CHATML.template, stop_strings=('### "Input":\n',))


def words(script: str) -> list[str]:
    """What a shell makes of the one command behind the comments."""
    *notes, command = script.rstrip("\n").split("\n")
    assert all(note.startswith("# ") for note in notes)
    done = subprocess.run(
        ["sh", "-c", 'sh() { printf "%s\\0" "$@"; }; sh ' + command], capture_output=True, check=True, text=True
    )
    assert shlex.split(command) == done.stdout.split("\0")[:-1]
    return shlex.split(command)


def said_in_each_request(script: str) -> dict[str, list[object]]:
    match = re.search(r"^# Each request (?:must|can) say so itself: (.*)$", script, re.MULTILINE)
    assert match
    found: dict[str, list[object]] = json.loads(match[1])
    return found


def artifact(spec: str, file: str) -> Artifact:
    return Artifact(spec=spec, file=file, sha256="0", files={file: "0"}, bytes=1, bpw=4.0, nominal_bpw=4.0)


@pytest.fixture(scope="module")
def manifest(exported_hermes: Path) -> Manifest:
    return Manifest.read(exported_hermes)


def test_llama_cpp_takes_its_ids_from_the_file() -> None:
    script = launch.llama_cpp(CHATML, "./out/m-Q4_K_M.gguf")
    assert words(script) == ["llama-server", "--model", "./out/m-Q4_K_M.gguf", "--alias", "m-Q4_K_M", "--jinja"]
    assert "ids it stops on: 32000 and 2." in script
    assert "Each request" not in script


def test_vllm_takes_its_ids_from_generation_config_and_float16() -> None:
    script = launch.vllm(CHATML, "./out/m-gptq")
    assert words(script) == ["vllm", "serve", "./out/m-gptq", "--served-model-name", "m-gptq",
                             "--dtype", "float16", "--generation-config", "auto"]  # fmt: skip
    assert said_in_each_request(script) == {"stop_token_ids": [32000, 2]}


def test_plain_text_stops_are_for_the_request_to_say() -> None:
    assert said_in_each_request(launch.llama_cpp(PLAIN_STOPS, "./m.gguf")) == {"stop": ['### "Input":\n']}
    assert "request must" in launch.llama_cpp(PLAIN_STOPS, "./m.gguf")
    assert "request can" in launch.vllm(CHATML, "./m")
    fields = {"stop_token_ids": [32000, 2], "stop": ['### "Input":\n']}
    assert said_in_each_request(launch.vllm(PLAIN_STOPS, "./m")) == fields


@pytest.mark.parametrize("write", [launch.llama_cpp, launch.vllm])
def test_no_name_reaches_the_shell_as_anything_but_a_name(write: launch.Writer) -> None:
    assert HOSTILE in words(write(CHATML, HOSTILE))
    for letter in "\n\x1b\r":
        with pytest.raises(HermetiqError, match="no recipe can name"):
            write(CHATML, f"./a{letter}rm -rf x")


def test_the_preset_holds_the_template_and_no_stop_that_an_id_says() -> None:
    text = lm_studio.preset(PLAIN_STOPS, "./out/My Model-Q8_0.gguf")
    document = json.loads(text)
    assert text.isascii()
    assert set(document) == {"identifier", "name", "changed", "operation", "load"}
    assert (document["identifier"], document["name"]) == ("@local:my-model-q8-0", "My Model-Q8_0")
    fields = {field["key"]: field["value"] for field in document["operation"]["fields"]}
    assert fields == {
        "llm.prediction.promptTemplate": {
            "type": "jinja",
            "jinjaPromptTemplate": {"template": CHATML.template, "bosToken": "<s>", "eosToken": "<|im_end|>"},
            "stopStrings": [],
        },
        "llm.prediction.stopStrings": ['### "Input":\n'],
    }
    plain = json.loads(lm_studio.preset(CHATML, "m.gguf"))["operation"]["fields"]
    assert [field["key"] for field in plain] == ["llm.prediction.promptTemplate"]


@pytest.mark.parametrize("write", [scripts.transformers, scripts.exllamav2])
def test_scripts_are_python_and_hold_names_and_texts_as_literals(write: launch.Writer) -> None:
    text = write(contract(CHATML.template, stop_strings=('"""\n\x1b{x}é',)), "./a\n'\"\x1b{folder}")
    constants = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    assert {"./a\n'\"\x1b{folder}", '"""\n\x1b{x}é', 32000, 2} <= set(constants)
    assert text.isascii()
    assert all(letter.isprintable() or letter == "\n" for letter in text)


def test_the_script_for_transformers_stops_on_the_terminator(
    trained_hermes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run as it stands, but for the question, on the trained model (which needs no quantizer's package)."""
    chat = CHATS[0]
    script = scripts.transformers(derive(open_checkpoint(str(trained_hermes))), str(trained_hermes))
    shown = script.replace("skip_special_tokens=True", "skip_special_tokens=False")
    (tmp_path / "ask.py").write_text(
        shown.replace('"What is the capital of France?"', repr(chat.messages[0]["content"]))
    )
    runpy.run_path(str(tmp_path / "ask.py"))
    assert capsys.readouterr().out.strip() == chat.answer + "<|im_end|>"


def test_ollama_and_llama_cpp_are_given_one_prompt_and_stop_by_id(manifest: Manifest, exported_hermes: Path) -> None:
    """The Modelfile's prompt is the one llama.cpp's own Jinja makes of the file, and answers to it end by id."""
    (recipe, *_) = recipes.recipes(manifest, str(exported_hermes), runtime="ollama")
    commands = dict(read_modelfile(recipe.text))
    assert "PARAMETER stop" not in commands
    with LlamaCpp(Path(commands["FROM"])) as llama:
        for chat in CHATS[:3]:
            prompt = ollama_prompt(commands["TEMPLATE"], chat.messages)
            assert prompt == llama.apply_template(chat.messages)
            (ids,) = llama.tokenize([prompt], add_special=True)
            generation = llama.generate(ids, max_tokens=60)
            assert generation.stopped
            assert generation.ids[-1] == manifest.source.contract.terminator_id
            assert generation.text == chat.answer
        assert set(manifest.source.contract.stop_ids) <= llama.end_of_generation


def test_every_artifact_has_a_recipe_for_every_runtime_that_reads_it(manifest: Manifest) -> None:
    files = {"gguf:Q8_0": "m-Q8_0.gguf", "gptq:4bit-g64": "m-gptq", "awq:4bit-g64": "m-awq", "exl2:4.65bpw": "m-exl2"}
    mixed = replace(manifest, artifacts=tuple(artifact(spec, file) for spec, file in files.items()))
    found = recipes.recipes(mixed)
    assert [(recipe.runtime, recipe.name) for recipe in found] == [
        ("ollama", "Modelfile.m-Q8_0"),
        ("llama.cpp", "m-Q8_0.llama-server.sh"),
        ("lm-studio", "m-Q8_0.preset.json"),
        ("vllm", "m-gptq.vllm.sh"),
        ("transformers", "m-gptq.transformers.py"),
        ("vllm", "m-awq.vllm.sh"),
        ("transformers", "m-awq.transformers.py"),
        ("exllamav2", "m-exl2.exllamav2.py"),
    ]
    assert all(recipe.text and not recipe.refused for recipe in found)
    assert [recipe.name for recipe in recipes.recipes(mixed, runtime="exllamav2")] == ["m-exl2.exllamav2.py"]


def test_a_recipe_that_cannot_be_is_told_and_stops_no_other(manifest: Manifest) -> None:
    shouting = templates.CHATML.replace("message['content']", "message['content'].upper()")
    source = replace(manifest.source, contract=replace(manifest.source.contract, template=shouting))
    odd = replace(manifest, source=source, artifacts=manifest.artifacts[:1])
    refused = {recipe.runtime: recipe.refused for recipe in recipes.recipes(odd)}
    assert "it moves or leaves out messages" in refused["ollama"]
    assert refused["llama.cpp"] == refused["lm-studio"] == ""
    with pytest.raises(HermetiqError, match="moves or leaves out"):
        recipes.recipes(odd, runtime="ollama")


def test_a_base_model_and_wrong_runtimes_are_refused(manifest: Manifest) -> None:
    base = replace(manifest.source, contract=replace(manifest.source.contract, template="", prompt_format="none"))
    with pytest.raises(HermetiqError, match="a base model has no chat template"):
        recipes.recipes(replace(manifest, source=base))
    with pytest.raises(HermetiqError, match=r"no recipe for 'oolama'.*ollama, llama\.cpp"):
        recipes.recipes(manifest, runtime="oolama")
    with pytest.raises(HermetiqError, match="no artifact here that vllm reads"):
        recipes.recipes(manifest, runtime="vllm")


def test_the_command_prints_one_recipe_ready_for_a_file(
    exported_hermes: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["recipes", str(exported_hermes), "--runtime", "lm-studio"])
    printed = capfd.readouterr().out
    first, end = json.JSONDecoder().raw_decode(printed)
    assert first["operation"]["fields"]
    assert printed[end:].lstrip().startswith("{")  # the next artifact's


def test_saved_recipes_name_the_artifacts_from_where_they_lie(
    exported_hermes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["recipes", str(exported_hermes), "--save", str(tmp_path / "r"), "--json"]
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code in (0, None)
    listed = json.loads(capfd.readouterr().out)
    assert set(listed[0]) == {"runtime", "artifact", "name", "text", "refused"}
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == sorted(entry["name"] for entry in listed)
    for file in (tmp_path / "r").glob("Modelfile.*"):
        assert (file.parent / dict(read_modelfile(file.read_text()))["FROM"]).is_file()
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "there is a file already" in capfd.readouterr().err
