"""The package as scripts meet it: light, named as documented, and with the options of the command line."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import typer

import hermetiq
from hermetiq import cli
from hermetiq.api.export import export, prepare_export
from hermetiq.api.options import ExportOptions, PublishOptions, VerifyOptions
from hermetiq.api.publish import prepare_release, publish
from hermetiq.api.verify import verify
from hermetiq.release_recipe import ReleaseRecipe

SHOWN = {"artifact", "as_json", "dry_run", "junit", "recipe"}
"""How a command shows what it did and where it takes its options from; a published repo has a function of its own."""
OPTIONS = {"export": ExportOptions.__annotations__, "publish": PublishOptions.__annotations__}


def command(name: str) -> dict[str, Any]:
    """Defaults of a command's parameters by name."""
    group = typer.main.get_command(cli.app)
    return {each.name: each.default for each in group.commands[name].params if each.name not in SHOWN}  # type: ignore[attr-defined]


def parameters(function: Callable[..., object]) -> set[str]:
    return set(inspect.signature(function).parameters) - {"options", "progress"}


@pytest.mark.parametrize("name", ["inspect", "export", "verify", "publish"])
def test_functions_have_the_options_of_their_commands(name: str) -> None:
    ours = parameters(getattr(hermetiq, name)) | set(OPTIONS.get(name, ()))
    theirs = {"parents" if each == "parent" else each for each in command(name)}
    assert ours == theirs


def test_what_prepares_takes_what_decides() -> None:
    assert parameters(prepare_export) < set(ExportOptions.__annotations__) | {"path"}
    assert parameters(prepare_release) == parameters(publish) | set(PublishOptions.__annotations__)
    assert not parameters(export) & set(ExportOptions.__annotations__)
    assert set(VerifyOptions.__annotations__) < parameters(verify)


def test_a_short_recipe_means_what_a_short_command_means() -> None:
    options = ReleaseRecipe(source="x/y", to=("gguf:Q8_0",)).export_options()
    defaults = command("export") | {"to": options["to"]}
    # What is an empty tuple to a function is None to the command line.
    assert {name: value or None for name, value in options.items()} == {
        name: defaults[name] or None for name in options
    }


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, hermetiq\n"
        "heavy = {'torch', 'pydantic', 'yaml', 'typer', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "hermetiq.inspect, hermetiq.open\n"
        "assert 'torch' not in sys.modules\n"
        "assert set(hermetiq.__all__) <= set(dir(hermetiq))\n"
        "assert all(getattr(hermetiq, name) for name in hermetiq.__all__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_folders_of_the_same_name_do_not_get_in_the_way() -> None:
    code = (
        "import hermetiq.verify, hermetiq.publish\n"
        "from hermetiq.verify import ArtifactReport\n"
        "from hermetiq.publish.plan import Layout\n"
        "import hermetiq\n"
        "for name in ('verify', 'publish'):\n"
        "    assert getattr(hermetiq, name).__module__ == f'hermetiq.api.{name}', name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_none_is_said_as_python_says_it() -> None:
    with pytest.raises(AttributeError, match="module 'hermetiq' has no attribute 'quantise'"):
        hermetiq.quantise  # type: ignore[attr-defined]  # noqa: B018
