"""Which file goes to which branch of which repo."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermetiq.errors import HermetiqError
from hermetiq.publish.plan import Layout, Part, Plan, plan
from tests.publish.release import SPECS, small_export


def planned(folder: Path, repo: str = "ada/Hermes", layout: Layout = Layout.per_format, **options: object) -> Plan:
    manifest = small_export(folder, **options)  # type: ignore[arg-type]
    return plan(manifest, repo, layout=layout, sizes=dict.fromkeys(manifest.files, 3000), parts={})


def shape(found: Plan) -> dict[str, dict[str, set[str]]]:
    own = {"README.md", "hermetiq.json", "hermetiq-files.json"}
    return {
        repo.id: {branch.name: {file.path for file in branch.files} - own for branch in repo.branches}
        for repo in found.repos
    }


FOLDER = {"model.safetensors", "config.json", "LICENSE"}


def test_every_format_has_its_repo_and_every_bitrate_its_branch(tmp_path: Path) -> None:
    assert shape(planned(tmp_path)) == {
        "ada/Hermes-GGUF": {"main": {"Hermes-Q8_0.gguf", "Hermes-Q4_K_M.gguf", "LICENSE"}},
        "ada/Hermes-GPTQ": {"main": FOLDER, "gptq-8bit-g128": FOLDER},
        "ada/Hermes-AWQ": {"main": FOLDER},
        "ada/Hermes-EXL2": {"main": {"measurement.json", "LICENSE"}, "4.65bpw": FOLDER, "3.0bpw": FOLDER},
    }


def test_one_repo_holds_gguf_on_main_and_folders_on_branches(tmp_path: Path) -> None:
    found = shape(planned(tmp_path, layout=Layout.single))
    assert list(found) == ["ada/Hermes"]
    assert found["ada/Hermes"]["main"] == {"Hermes-Q8_0.gguf", "Hermes-Q4_K_M.gguf", "measurement.json", "LICENSE"}
    assert set(found["ada/Hermes"]) == {"main"} | {spec.replace(":", "-") for spec in SPECS if "gguf" not in spec}


def test_only_main_has_a_card_and_every_branch_its_list(tmp_path: Path) -> None:
    for repo in planned(tmp_path).repos:
        for branch in repo.branches:
            paths = [file.path for file in branch.files]
            assert paths[-1] == "hermetiq-files.json"
            assert ("README.md" in paths, "hermetiq.json" in paths) == (branch.name == "main",) * 2


def test_a_name_that_ends_as_its_only_format_does_stays(tmp_path: Path) -> None:
    assert [repo.id for repo in planned(tmp_path, "ada/Hermes-gguf", specs=SPECS[:1]).repos] == ["ada/Hermes-gguf"]
    assert [repo.id for repo in planned(tmp_path, "ada/Hermes-awq", specs=SPECS[:1]).repos] == ["ada/Hermes-awq-GGUF"]


def test_a_split_file_is_planned_as_its_parts(tmp_path: Path) -> None:
    manifest = small_export(tmp_path, SPECS[:1])
    parts = (Part("Hermes-Q8_0-00001-of-00002.gguf", 2000), Part("Hermes-Q8_0-00002-of-00002.gguf", 1500))
    sizes = dict.fromkeys(manifest.files, 3000)
    (repo,) = plan(
        manifest, "ada/Hermes", layout=Layout.per_format, sizes=sizes, parts={"gguf/Hermes-Q8_0.gguf": parts}
    ).repos
    split = [file for file in repo.main.files if file.origin]
    assert [(file.path, file.bytes) for file in split] == [(f"Hermes-Q8_0/{part.name}", part.bytes) for part in parts]
    assert repo.bytes == 3500


@pytest.mark.parametrize("repo", ["Hermes", "ada/Her/mes", "../x", "ada/..", "ada/x--y", "", "ada/ü", "a b/c"])
def test_what_is_no_hub_id_is_refused(tmp_path: Path, repo: str) -> None:
    with pytest.raises(HermetiqError, match="not a valid Hub id"):
        planned(tmp_path, repo)


def test_a_file_above_the_hubs_limit_is_refused(tmp_path: Path) -> None:
    manifest = small_export(tmp_path, ("awq:4bit-g64",))
    sizes = {name: 50_000_000_000 if "safetensors" in name else 1 for name in manifest.files}
    with pytest.raises(HermetiqError, match=r"model\.safetensors has 50000000000 bytes"):
        plan(manifest, "ada/Hermes", layout=Layout.per_format, sizes=sizes, parts={})
