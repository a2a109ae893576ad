"""Recipe files: what they mean, what is wrong with them and where, and that they give the same bytes again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hermetiq import cli
from hermetiq.api import export as exporting
from hermetiq.api import verify as verifying
from hermetiq.errors import HermetiqError
from hermetiq.release_recipe import ReleaseRecipe
from tests.fixtures.models import tiny_checkpoint
from tests.fixtures.verified import all_pass

SHORT = "source: model\nto: [gguf:q8_0]\n"
PUBLISH = "publish:\n  repo: ada/Mini\n  base_model: ada/Fine\n  license: mit\n"


def written(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "release.yml"
    path.write_text(text)
    return path


@pytest.fixture
def called(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(map(str, arguments)))
        told = capsys.readouterr()
        return int(stop.value.code or 0), told.out + told.err

    return call


def test_paths_begin_in_the_recipes_folder_and_hub_ids_are_no_paths(tmp_path: Path) -> None:
    here = tmp_path / "deep"
    (here / "org" / "beside").mkdir(parents=True)
    recipe = ReleaseRecipe.read(
        written(
            here,
            "source: org/beside\nadapter: org/lora\nout: ../out\nto: [gguf:F16]\nmeasurement: m.json\nrepair: true\n"
            "init_tags: parent:org/beside\ncalibration: {corpus: chats/a.jsonl}\nchat_template: t.jinja\n",
        )
    )
    options = recipe.export_options()
    assert recipe.path == str(here / "org/beside")
    assert recipe.folder == here / "../out"
    assert options["adapter"] == "org/lora"
    assert options["init_tags"] == recipe.verify_options()["init_tags"] == f"parent:{here / 'org/beside'}"
    assert options["calibration"] == str(here / "chats/a.jsonl")
    assert (options["measurement"], options["chat_template"]) == (here / "m.json", here / "t.jinja")


def test_every_field_reaches_its_option(tmp_path: Path) -> None:
    recipe = ReleaseRecipe.read(
        written(
            tmp_path,
            "source: a/b\nto: [GGUF:q8_0, exl2:4.650bpw]\nname: Mini\nignore: [eos-mismatch]\nsequential: true\n"
            "imatrix: false\nbase_model: true\nrepair: true\ncalibration: {rows: 8, row_tokens: 64, seed: 3}\n"
            f"{PUBLISH}  layout: single\n  private: true\n",
        )
    )
    options = {name: value for name, value in recipe.export_options().items() if value is not None}
    assert options == {
        "to": ("gguf:Q8_0", "exl2:4.65bpw"), "name": "Mini", "ignore": ("eos-mismatch",), "sequential": True,
        "imatrix": False, "base_model": True, "repair": True, "rows": 8, "row_tokens": 64, "seed": 3,
    }  # fmt: skip
    assert recipe.repo == "ada/Mini"
    assert recipe.publish_options() == {
        "layout": "single", "base_model": "ada/Fine", "license": "mit", "private": True,
    }  # fmt: skip


def test_limits_by_the_nearest_name(tmp_path: Path) -> None:
    text = "source: a/b\nto: [gguf:Q8_0, gguf:F16, gptq:4bit-g64]\nthresholds:\n  max_kl: "
    several = ReleaseRecipe.read(written(tmp_path, text + "{all: 0.5, gguf:q8_0: 0, gptq: 0.2}\n"))
    assert several.verify_options()["max_kl"] == {"gguf": 0.5, "gguf:Q8_0": 0, "gptq": 0.2}
    assert ReleaseRecipe.read(written(tmp_path, text + "1")).verify_options()["max_kl"] == {"gguf": 1.0, "gptq": 1.0}
    assert ReleaseRecipe.read(written(tmp_path, SHORT)).verify_options()["max_kl"] == {}


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        (SHORT + "sead: 1\n", ":3: sead", "no such field; seed is one"),
        (SHORT + "calibration:\n  rows: 16\n  row: 1\n", ":5: calibration.row", "no such field; rows is one"),
        (SHORT + 'calibration:\n  rows: "16"\n', ":4: calibration.rows", "valid integer"),
        (SHORT + "calibration:\n  rows: true\n", ":4: calibration.rows", "valid integer"),
        (SHORT + "calibration:\n  rows: 0\n", ":4: calibration.rows", "greater than or equal to 1"),
        (SHORT + "calibration: 16\n", ":3: calibration", "fields are expected"),
        (SHORT + "sequential: 1\n", ":3: sequential", "valid boolean"),
        (SHORT + "ignore: [eos-mismatch, eos-missmatch]\n", ":3: ignore.1", "eos-mismatch"),
        (SHORT + "init_tags: copy\n", ":3: init_tags", "unknown start"),
        (SHORT + "revision: main\n", ":3: revision", "only a Hub id"),
        (SHORT + "adapter: " + "x" * 300 + "\n", ":3: adapter", "no path"),
        (SHORT + "thresholds:\n  max_kl: .nan\n", ":4: thresholds.max_kl", "finite"),
        (SHORT + "thresholds:\n  max_kl: -1\n", ":4: thresholds.max_kl", "greater than or equal"),
        (SHORT + "thresholds:\n  max_kl:\n    gguf: no\n", ":5: thresholds.max_kl.gguf", "valid number"),
        (SHORT + "thresholds:\n  max_kl:\n    gguf:Q9: 1\n", ":5: thresholds.max_kl.gguf:Q9", "unknown recipe"),
        (SHORT + "thresholds:\n  max_kl:\n    awq: 1\n", ":3: thresholds", "'awq', which `to` does not make"),
        (SHORT + "publish:\n  layout: single\n", ":3: publish.repo", "is missing"),
        (SHORT + "publish:\n  repo: Mini\n", ":4: publish.repo", "no Hub id"),
        (SHORT + "publish:\n  repo: a/b\n  layout: both\n", ":5: publish.layout", "'per-format' or 'single'"),
        ("source: model\nto: gguf:Q8_0\n", ":2: to", "a list"),
        ("source: model\nto: []\n", ":2: to", "at least 1"),
        ("source: model\nto:\n  - gguf:Q8_0\n  - gguf:Q9\n", ":4: to.1", "Q4_K_M"),
        ("source:\nto: [gguf:Q8_0]\n", ":1: source", "valid string"),
        ("to: [gguf:Q8_0]\n", ":1: source", "is missing"),
        ("- a\n", ":1", "fields are expected"),
        ("a text\n", ":1", "fields are expected"),
    ],
)
def test_errors_name_the_line_and_the_field(tmp_path: Path, text: str, place: str, what: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(HermetiqError) as wrong:
        ReleaseRecipe.read(path)
    assert wrong.value.where == f"{path}{place}"
    assert what in wrong.value.what


def test_every_error_is_told_at_once(
    tmp_path: Path, called: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "source: 1\nto: [gguf:Q9]\ncalibration:\n  seed: x\n")
    status, told = called("export", "--recipe", "release.yml", "--dry-run")
    assert status == 2
    for place in ("release.yml:1: source: ", "\nrelease.yml:2: to.0: ", "\nrelease.yml:4: calibration.seed: "):
        assert place in told
    assert "Traceback" not in told


def test_a_path_of_the_working_folder_is_no_path_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HermetiqError, match="not beside the recipe"):
        ReleaseRecipe.read(written(tmp_path / "elsewhere", "source: org/model\nto: [gguf:F16]\n"))


def test_one_recipe_gives_the_same_bytes_twice_and_goes_all_the_way(
    tmp_path: Path, called: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_checkpoint(tmp_path / "model", tokenizer="bpe")
    text = (
        "source: model\nout: out\nname: Mini\nto: [gguf:Q4_K_M, gptq:4bit-g64]\n"
        f"calibration: {{rows: 8, row_tokens: 64, seed: 3}}\nthresholds: {{max_kl: 2}}\n{PUBLISH}"
    )
    recipe = written(tmp_path, text)
    for where in ((), (tmp_path / "again",)):
        status, told = called("export", *where, "--recipe", recipe, "--device", "cpu")
        assert status == 0, told
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "out", tmp_path / "again")
    )
    # How long it took is beside the export, and no part of it.
    assert {path.name for path in first if first[path] != second[path]} <= {"hermetiq-stages.json"}
    assert set(first) == set(second)
    assert Path("gguf/Mini-Q4_K_M.gguf") in first

    asked: list[object] = []

    def verified(folder: Path, source: object, **options: object) -> object:
        asked.append(options["max_kl"])
        return all_pass(folder, source)  # type: ignore[arg-type]

    monkeypatch.setattr(verifying, "hold_against", verified)
    assert called("verify", "--recipe", recipe)[0] == 0
    assert asked == [{"gguf": 2.0, "gptq": 2.0}]
    status, told = called("publish", "--recipe", recipe, "--dry-run")
    assert status == 0, told
    assert "ada/Mini-GPTQ" in told
    assert "ada/Fine; licence mit" in told


def test_what_a_recipe_decides_is_decided_once(
    tmp_path: Path, called: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "prepare_export", lambda *_, **__: pytest.fail("nothing may begin"))
    recipe = written(tmp_path, SHORT)
    beside = ("--recipe", recipe)
    for arguments, names in (
        (("export", "out", *beside, "--to", "gguf:F16", "--seed", 0), "--seed, --to"),
        (("export", "model", "out", *beside), "PATH"),
        (("export", *beside), "out: the recipe names no folder"),
        (("verify", "out", *beside, "--source", "model", "--max-kl", 1), "--source, --max-kl"),
        (("publish", "out", "a/b", *beside), "REPO"),
        (("publish", "out", *beside, "--private"), "--private"),
        (("publish", "out", *beside), "publish: the recipe says nothing of it"),
        (("export", "model", "out"), "--to: is missing"),
        (("export", "model"), "OUT: is missing"),
        (("verify", "out"), "--source: is missing"),
        (("publish", "out"), "REPO: is missing"),
        (("export", "out", "--recipe", tmp_path / "none.yml"), "none.yml: no such file"),
    ):
        status, told = called(*arguments)
        assert status == 2, arguments
        assert f"error: {names}" in told or f"/{names}" in told, (arguments, told)
