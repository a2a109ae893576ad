"""Task files that are no code pass; whatever would run is refused, wherever it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermetiq.errors import HermetiqError
from hermetiq.evaluate.task_files import asks_for_remote_code, mentioned, require_data

METRICS = {"acc", "acc_norm", "exact_match"}


def written(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_data_passes(tmp_path: Path) -> None:
    written(
        tmp_path,
        a__yaml="include: base\ntask: a\nmetric_list: [{metric: acc}]\nself: &s [*s]\n",
        base="dataset_path: json\ninclude: a.yaml\n",
    )
    require_data(tmp_path, METRICS)
    require_data(Path(__file__).parent / "tasks", METRICS)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"a__yaml": "task: a\ndoc_to_text: !function own.text\n"}, "line 2: runs Python"),
        ({"a__yaml": "task: [{task: b, class: !function own.Task}]\n"}, "runs Python"),
        ({"a__yaml": "include: base\n", "base": "process_docs: !function own.docs\n"}, "base: line 1: runs Python"),
        ({"a__yaml": "include: [b, base]\n", "b": "{}", "base": "x: !function y.z\n"}, "runs Python"),
        ({"a__yaml": "task: a\nmetric_list: [{metric: ./own.py}]\n"}, r"'./own.py' is a script"),
        ({"a__yaml": "task: a\nmetric_list: [{metric: acc, hf_evaluate: true}]\n"}, "is a script"),
        ({"a__yaml": "group: a\ntask: [{task: b, metric_list: [{metric: other}]}]\n"}, "'other' is a script"),
        ({"a__yaml": "include: ../b.yaml\n"}, "outside"),
        ({"a__yaml": "include: /etc/hostname\n"}, "outside"),
        ({"a__yaml": "include: nowhere\n"}, "no task file"),
        ({"a__yaml": "task: [\n"}, "no task file"),
        ({"a__yaml": "task: !!python/object/apply:os.getcwd []\n"}, "no task file"),
        ({"a__yaml": "[" * 5000}, "no task file"),
    ],
)
def test_code_is_refused(files: dict[str, str], told: str, tmp_path: Path) -> None:
    with pytest.raises(HermetiqError, match=told) as refused:
        require_data(written(tmp_path, **files), METRICS)
    assert str(tmp_path) in refused.value.where


def test_a_link_out_of_the_folder_is_read_for_what_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (tmp_path / "elsewhere").write_text("task: a\ndoc_to_text: !function own.text\n")
    (folder / "a.yaml").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HermetiqError, match="runs Python"):
        require_data(folder, METRICS)


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(HermetiqError, match="no such folder"):
        require_data(tmp_path / "tasks", METRICS)


@pytest.mark.parametrize(
    ("config", "asks"),
    [
        ({"dataset_kwargs": {"trust_remote_code": True}}, True),
        ({"task": [{"dataset_kwargs": {"trust_remote_code": True}}]}, True),
        ({"dataset_kwargs": {"trust_remote_code": False}}, False),
        (None, False),
    ],
)
def test_remote_code_is_seen_at_any_depth(config: object, asks: bool) -> None:
    assert asks_for_remote_code(config) is asks


def test_the_members_of_groups_are_mentioned() -> None:
    own: list[object] = ["arc_easy", {"task": "b", "num_fewshot": 5}, {"group": "c", "task": ["d"]}, {"group": "e"}]
    own.append(own)
    assert mentioned([{"group": "a", "task": own}, {"task": "f"}, None]) == {*"abcdef", "arc_easy"}
