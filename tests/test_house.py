"""The house as seen from the door: layout, packages, import direction, and a light entrance."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINES = ("calibration", "formats", "quantize")

# Each part may import the parts of the rows above it, itself, and nothing below.
ORDER = (
    {"hermetiq.errors", "hermetiq.model", "hermetiq.progress", "hermetiq.units"},
    {"hermetiq.lanes", "hermetiq.machine", "hermetiq.typed_json"},
    {"hermetiq.rules"},
    {"hermetiq.cases"},
    {"hermetiq.rules_page"},
    {"hermetiq.calibration"},
    {"hermetiq.quantize"},
    {"hermetiq.formats"},
    {"hermetiq.checkpoint"},
    {"hermetiq.chat"},
    {"hermetiq.companions"},
    {"hermetiq.repair", "hermetiq.runtimes"},
    {"hermetiq.verification"},
    {"hermetiq.manifest"},
    {"hermetiq.measurement", "hermetiq.recipes", "hermetiq.stages"},
    {"hermetiq.plan", "hermetiq.journal"},
    {"hermetiq.place", "hermetiq.tracks"},
    {"hermetiq.harvest"},
    {"hermetiq.settle"},
    {"hermetiq.verify"},
    {"hermetiq.evaluate", "hermetiq.forward", "hermetiq.pipeline"},
    {"hermetiq.demo", "hermetiq.doctor", "hermetiq.publish", "hermetiq.report", "hermetiq.ci"},
    {"hermetiq.api"},
    {"hermetiq.lined_yaml"},
    {"hermetiq.release_recipe"},
    {"hermetiq"},
    {"hermetiq.screen"},
    {"hermetiq.cli", "hermetiq.pytest_plugin"},
    {"hermetiq.__main__"},
)
LEVEL = {part: level for level, parts in enumerate(ORDER) for part in parts}


def modules() -> dict[str, Path]:
    """Every module of the program by its import name, the engines under the names they are imported by."""
    found = {}
    for folder, prefix in ((ROOT / "hermetiq", "hermetiq"), *((ROOT / e, f"hermetiq.{e}") for e in ENGINES)):
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder).with_suffix("").parts
            if prefix == "hermetiq" and inside[0] in ENGINES:
                continue
            name = ".".join((prefix, *inside)).removesuffix(".__init__")
            found[name] = path
    return found


def part_of(module: str) -> str:
    return module if module == "hermetiq" else ".".join(module.split(".")[:2])


def imports(path: Path, module: str) -> set[str]:
    """Absolute names of what a module imports, wherever in the file it does so."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
            names |= {f"{base}.{node.module}" if node.module else base}
        elif isinstance(node, ast.ImportFrom):
            names |= {
                f"{node.module}.{alias.name}" if node.module == "hermetiq" else str(node.module) for alias in node.names
            }
    return names


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_one_way(module: str) -> None:
    level = LEVEL[part_of(module)]
    for name in imports(modules()[module], module):
        assert name.partition(".")[0] not in ENGINES, f"{module} imports {name} by its bare name"
        if name.startswith("hermetiq") and part_of(name) in LEVEL:
            target = part_of(name)
            assert target == part_of(module) or LEVEL[target] < level, f"{module} may not import {name}"


def test_the_import_reader_sees_relative_and_nested_imports(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "from . import b\nfrom ..up import c\ndef f():\n    import hermetiq.cli\nfrom hermetiq import rules\n"
    )
    assert imports(path, "hermetiq.pkg.x") == {"hermetiq.pkg", "hermetiq.up", "hermetiq.cli", "hermetiq.rules"}


def test_packages_folders_and_links_agree() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name.removesuffix(".__init__") for name, path in modules().items() if path.name == "__init__.py"}
    assert sorted(folders) == setup["packages"]
    assert setup["package-dir"] == {
        "hermetiq": "hermetiq",
        **{
            name: name.removeprefix("hermetiq.").replace(".", "/")
            for name in folders
            if name.split(".")[1:2] and name.split(".")[1] in ENGINES
        },
    }
    for engine in ENGINES:
        link = ROOT / "hermetiq" / engine
        assert link.is_symlink()
        assert link.readlink() == Path("..", engine)


def test_every_folder_with_modules_is_a_package() -> None:
    for path in modules().values():
        assert (path.parent / "__init__.py").exists(), f"{path.parent} has no __init__.py"


def test_help_is_instant_and_imports_no_torch() -> None:
    """`--help` must answer in half a second; a heavy import is the only way to miss that, so look for those."""
    code = (
        "import sys, hermetiq.cli\n"
        "try: hermetiq.cli.main(['--help'])\n"
        "except SystemExit as stop: assert stop.code in (0, None)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'tokenizers', 'gguf', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "export" in done.stdout


def test_only_the_command_line_prints_and_exits() -> None:
    for name, path in modules().items():
        if name in ("hermetiq.cli", "hermetiq.screen"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            assert called not in {"exit", "quit"}, f"{name} line {node.lineno} exits"
            assert not (called == "print" and not name.endswith("_worker")), f"{name} line {node.lineno} prints"
