"""Templates give the text that transformers gives, and hostile ones give nothing but an error, soon."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import tokenizers
import transformers
from tokenizers import models

from hermetiq.chat import template as template_module
from hermetiq.chat.template import RenderRequest, TemplateError, TemplateUnsafe, render, render_each
from tests.chat import templates

STYLES = {name: text for name, text in vars(templates).items() if name.isupper()}
CHATS = {
    "question": [{"role": "user", "content": "Hi <there> & 'you'"}],
    "two turns": [
        {"role": "user", "content": " Où? "},
        {"role": "assistant", "content": "Là\n"},
        {"role": "user", "content": "日本 🦊"},
        {"role": "assistant", "content": "{{ 7 * 7 }}"},
    ],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def transformers_renders(template: str, messages: list[dict[str, str]], prompt: bool) -> str | None:
    """The text of `apply_chat_template`; None where the template refuses the chat."""
    backend = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **SPECIAL)
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
    except Exception:
        return None
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("style", STYLES)
def test_text_equals_that_of_transformers(style: str) -> None:
    cases = [(chat, prompt) for chat in CHATS.values() for prompt in (False, True)]
    ours = render_each(STYLES[style], [RenderRequest(chat, prompt, SPECIAL) for chat, prompt in cases])
    assert any(isinstance(text, str) and text for text in ours)
    for (chat, prompt), text in zip(cases, ours, strict=True):
        assert (None if isinstance(text, TemplateError) else text) == transformers_renders(STYLES[style], chat, prompt)


def test_tools_and_other_variables_are_seen() -> None:
    request = RenderRequest(CHATS["question"], variables={"tools": [{"name": "<é>"}]})
    assert render("{{ tools | tojson }}{{ documents is none }}", [request]) == ['[{"name": "<é>"}]True']


def test_render_raises_what_one_chat_raises() -> None:
    requests = [RenderRequest(CHATS["question"]), RenderRequest(CHATS["system"])]
    with pytest.raises(TemplateError, match="roles must alternate"):
        render(templates.MISTRAL, requests)


@pytest.mark.parametrize(
    "template",
    ["{% for m in messages %}", "{{ nothing.here.at.all }}", "{{ 1 / 0 }}", "{{ '\\ud800' }}", "{# \ud800 #}"],
)
def test_a_broken_template_is_an_error_of_its_own(template: str) -> None:
    with pytest.raises(TemplateError, match="chat template"):
        render(template, [RenderRequest(CHATS["question"])])


HOSTILE = {
    "endless loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "huge power": "{{ 10 ** (10 ** 9) }}",
    "long text": "{{ 'a' * 10**10 }}",
    "long list": "{% set x = [0] * 10**9 %}",
    "padded text": "{{ ('%' ~ '0999999999d') % 1 }}",
    "doubling": "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "long range": "{{ range(10**9) | list }}",
    "much output": "{% for i in range(99999) %}{{ 'abcdefghijklmnopqrstuvwxyz' * 100 }}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "deep brackets": "{{" + "(" * 50_000 + ")" * 50_000 + "}}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by item": "{{ ''['__class__'] }}",
    "class by filter": "{{ '' | attr('__class__') }}",
    "class by parts": "{{ ''['__cla' ~ 'ss__'] }}",
    "class by format": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "class in a branch not taken": "{% if false %}{{ messages.__class__ }}{% endif %}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "globals of ours": "{{ raise_exception.__globals__ }}",
    "private name": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "private name at first": "{{ namespace({'__class__': 1}) }}",
    "change of the messages": "{{ messages.append(1) }}",
    "include": "{% include '/etc/passwd' %}",
    "include if there": "{% include '/etc/passwd' ignore missing %}",
    "import": "{% import '/etc/passwd' as x %}",
    "import from": "{% from 'x' import y %}",
    "extends": "{% extends 'x' %}",
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_template_is_refused_within_seconds(attack: str) -> None:
    start = time.monotonic()
    with pytest.raises(TemplateUnsafe, match="chat template"):
        render(HOSTILE[attack], [RenderRequest(CHATS["question"])])
    assert time.monotonic() - start < 20


def test_memory_runs_out_before_the_machine_s_does() -> None:
    with pytest.raises(TemplateUnsafe, match="exhausts its memory"):
        render("{{ 'a' * 10**9 }}", [RenderRequest(CHATS["question"])])


def test_a_worker_that_waits_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "WALL_SECONDS", 0)
    with pytest.raises(TemplateUnsafe, match="did not end within 0 seconds"):
        render("x", [RenderRequest(CHATS["question"])])


def test_messages_of_a_template_cannot_drive_a_terminal() -> None:
    (outcome,) = render_each("{{ raise_exception('\x1b[31mred\\x1b[2J\x07') }}", [RenderRequest(CHATS["question"])])
    assert isinstance(outcome, TemplateError)
    assert outcome.what.isprintable()


def test_the_environment_of_the_worker_holds_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []
    run = subprocess.run

    def record(*arguments: object, **options: object) -> object:
        seen.append(options["env"])  # type: ignore[arg-type]
        return run(*arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(subprocess, "run", record)
    assert render("{{ messages | length }}", [RenderRequest(CHATS["two turns"])]) == ["4"]
    assert "hf_secret" not in seen[0].values()


def test_modules_beside_the_user_are_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("jinja2.py").write_text("raise SystemExit('run')")
    assert render("fine", [RenderRequest(CHATS["question"])]) == ["fine"]


def test_long_chats_are_not_taken_for_an_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "MEMORY_BYTES", 60_000_000)
    texts = render(templates.CHATML, [RenderRequest([{"role": "user", "content": "é" * 400_000}])] * 20)
    assert {len(text) for text in texts} == {400_000 + len("<|im_start|>user\n<|im_end|>\n")}


def test_many_chats_take_one_process_and_keep_their_order() -> None:
    requests = [RenderRequest([{"role": "user", "content": str(i)}]) for i in range(2000)]
    start = time.monotonic()
    texts = render(templates.CHATML, requests)
    assert [text.split("\n")[1] for text in texts] == [f"{i}<|im_end|>" for i in range(2000)]
    assert time.monotonic() - start < 20


def test_the_worker_starts_without_torch() -> None:
    code = "import sys, hermetiq.chat.render_worker, hermetiq.chat.template; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "tokenizers"} & set(loaded)
