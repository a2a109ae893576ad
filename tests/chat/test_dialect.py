"""Templates that render in Python, and what of them other engines would stumble over."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermetiq.chat.inspect import inspect
from tests.chat import templates
from tests.chat.templates import CHATML
from tests.fixtures.models import edit_json, tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("dialect") / "m", family="qwen2", tokenizer="bpe", layers=1)


def found(folder: Path, template: str) -> list[str]:
    edit_json(folder / "tokenizer_config.json", chat_template=template)
    return [item.found for item in inspect(str(folder), weights=False, select=["template-dialect"]).findings]


@pytest.mark.parametrize("name", [name for name in vars(templates) if name.isupper()])
def test_templates_in_use_are_healthy(name: str, folder: Path) -> None:
    assert found(folder, getattr(templates, name)) == []


@pytest.mark.parametrize(
    ("use", "words"),
    [
        ("{{ [1] | batch(2) | list }}", "the filter batch"),
        ("{{ 1 if 2 is ne 1 }}", "the test ne"),
        ("{{ 'a'.isdigit() }}", "the method isdigit"),
        ("{{ 2 ** 3 }}", "the operator **"),
        ("{% with %}{{ 'a'.isdigit() or 'b'.isdigit() }}{% endwith %}", "{% with %}, the method isdigit"),
    ],
)
def test_what_other_engines_lack_is_named_once(use: str, words: str, folder: Path) -> None:
    assert found(folder, CHATML + use) == [words]


@pytest.mark.parametrize(
    "use",
    [
        "{{ messages[::-1][0].content.split('x')[-1] | trim | tojson(indent=2) }}",
        "{% generation %}{% for m in messages if m is mapping %}{% continue %}{% endfor %}{% endgeneration %}",
        "{% macro f(a) %}{{ a }}{% endmacro %}{{ f('x' ~ 1) }}{% set n = namespace(i=1) %}{{ n.i }}",
    ],
)
def test_what_they_know_is_no_finding(use: str, folder: Path) -> None:
    assert found(folder, CHATML + use) == []
