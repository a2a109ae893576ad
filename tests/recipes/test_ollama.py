"""Modelfiles: what Ollama sends to the model is what the model's own template prints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hermetiq.chat.contract import ChatContract, Tag
from hermetiq.errors import HermetiqError
from hermetiq.recipes.ollama import go_template, modelfile
from hermetiq.recipes.turns import Turns
from tests.oracles.go_template import ollama_prompt, read_modelfile
from tests.recipes.test_turns import CHATML, SOUND, contract, prompts, taken_apart

HOSTILE = Turns(
    start='"""\n# FROM ./other\n{{ .System }}',
    system=('\\"x\\n', "\t\r\x00\x1b[2J\x7f\xa0\u2028 %s\U0001f600'`"),
    answer="}}{{ end }}",
    question="",
    prompt='""""""',
)
CHAT = [
    {"role": "system", "content": 'S """ {{ .Content }}'},
    {"role": "user", "content": "a\n"},
    {"role": "assistant", "content": " b"},
    {"role": "user", "content": "c"},
]
GO = """package main

import ("encoding/json"; "os"; "text/template")

type Message struct { Role, Content string }
type Job struct { Template, System string; Messages []*Message }

func main() {
	var jobs []Job
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil { panic(err) }
	var out []string
	for _, job := range jobs {
		var b = new(jsonText)
		values := map[string]any{"System": job.System, "Messages": job.Messages, "Response": ""}
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(job.Template))
		if err := parsed.Execute(b, values); err != nil { panic(err) }
		out = append(out, string(*b))
	}
	json.NewEncoder(os.Stdout).Encode(out)
}

type jsonText []byte
func (t *jsonText) Write(p []byte) (int, error) { *t = append(*t, p...); return len(p), nil }
"""


def value(text: str, command: str) -> str:
    (found,) = (value for name, value in read_modelfile(text) if name == command)
    return found


@pytest.mark.parametrize("template", SOUND.values(), ids=SOUND)
def test_ollama_is_given_the_prompts_of_the_model(template: str) -> None:
    asked = contract(template)
    pieces = taken_apart(asked)
    written = value(modelfile(asked, "./m.gguf"), "TEMPLATE")
    for chat in prompts():
        if pieces.system is None and chat[0]["role"] == "system":
            continue
        stripped = [{**m, "content": m["content"].strip()} if m["role"] in pieces.trimmed else m for m in chat]
        assert ollama_prompt(written, stripped) == pieces.join(chat)


def test_texts_that_look_like_the_languages_around_them_stay_texts() -> None:
    template = go_template(HOSTILE)
    assert '"""' not in template
    assert all(letter.isprintable() or letter == "\n" for letter in template)
    assert ollama_prompt(template, CHAT) == HOSTILE.join(CHAT)
    assert ollama_prompt(template, CHAT[1:]) == HOSTILE.join(CHAT[1:])


def test_a_chat_that_ends_with_the_assistant_goes_on_there() -> None:
    prompt = ollama_prompt(go_template(taken_apart(CHATML)), CHAT[1:3])
    assert prompt.endswith("<|im_start|>assistant\n b")


@pytest.mark.skipif(shutil.which("go") is None, reason="no Go toolchain here; the oracle alone was asked")
def test_the_real_engine_prints_the_same(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text(GO)
    templates = [go_template(HOSTILE), *(go_template(taken_apart(contract(text))) for text in SOUND.values())]
    chats = [*prompts()[:20], CHAT, CHAT[1:], CHAT[1:3]]
    cases = [(template, chat) for template in templates for chat in chats]
    jobs = [
        {
            "Template": template,
            "System": chat[0]["content"] if chat[0]["role"] == "system" else "",
            "Messages": [{"Role": message["role"], "Content": message["content"]} for message in chat],
        }
        for template, chat in cases
    ]
    environment = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off"}
    done = subprocess.run(
        ["go", "run", "main.go"],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [ollama_prompt(template, chat) for template, chat in cases]


def test_ids_that_the_file_states_are_not_repeated_as_texts() -> None:
    text = modelfile(CHATML, "./m.gguf")
    assert "PARAMETER" not in text
    assert "# The file itself states the ids it stops on: 32000 and 2.\n" in text


def test_a_stop_is_a_text_only_where_no_id_can_say_it() -> None:
    """A `.gguf` has three places for ids; a fourth id is spelled out, or told where its text is unknown (U52)."""
    crowded = contract(CHATML.template, stop_ids=(2, 7, 9, 32000, 32001), stop_strings=("### Instruction:", "a\nb"))
    assert [value for name, value in read_modelfile(modelfile(crowded, "./m.gguf")) if name == "PARAMETER stop"] == [
        "### Instruction:",
        "a\nb",
        "<|im_start|>",
    ]
    assert "# Ollama cannot be told to stop on 7 and 9, too.\n" in modelfile(crowded, "./m.gguf")


@pytest.mark.parametrize("path", ["m.gguf", "./out/m.gguf", "../a b/$(rm -rf x)#.gguf", "/a'b/m.gguf"])
def test_the_name_of_the_file_is_read_back(path: str) -> None:
    found = value(modelfile(CHATML, path), "FROM")
    assert found == (path if path != "m.gguf" else "./m.gguf")


@pytest.mark.parametrize("name", ['a".gguf', "a\x1b.gguf", "a\r.gguf"])
def test_a_name_that_a_modelfile_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(HermetiqError, match="a Modelfile cannot hold"):
        modelfile(CHATML, name)


def test_what_ollama_cannot_do_is_said() -> None:
    text = modelfile(contract(SOUND["mistral"]), "m.gguf")
    assert "# The model's template takes no system message: SYSTEM has no effect.\n" in text
    assert "strips white space around texts of assistant, user; " in modelfile(contract(SOUND["llama 2"]), "m.gguf")
    thinking = CHATML.template.replace("message['content']", "message['content'].split('</think>')[-1]")
    assert "drops what earlier answers thought" in modelfile(contract(thinking), "m.gguf")
    dated = "{{ strftime_now('%Y') }}" + CHATML.template
    assert "below it stays the day on which this was written" in modelfile(contract(dated), "m.gguf")
    assert modelfile(CHATML, "m.gguf").count("#") == 1


def test_the_special_tokens_of_the_template_are_the_contracts() -> None:
    """An export states the terminator as EOS everywhere, whatever the source's `eos_token` was."""
    asked: ChatContract = replace(contract(SOUND["mistral"]), terminator="</s>", terminator_id=2, stop_ids=(2,),
                                  tags=(Tag("<s>", 1), Tag("</s>", 2)))  # fmt: skip
    assert taken_apart(asked).start == "<s>[INST] "
    assert taken_apart(asked).question == "</s> [INST] "
