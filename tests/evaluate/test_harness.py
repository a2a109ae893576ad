"""A real run of the harness on the trained model and its artifacts, with task files of ours and without a network."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hermetiq import cli
from hermetiq.checkpoint import open_checkpoint
from hermetiq.errors import HermetiqError
from hermetiq.evaluate import Evaluation, evaluate
from hermetiq.evaluate.results import Score
from hermetiq.manifest import EVALUATION, Manifest
from hermetiq.verify import native

lm_eval = pytest.importorskip("lm_eval", reason="the extra `eval` is not installed; `make test-eval` installs it")

from lm_eval.tasks import TaskManager  # noqa: E402
from tqdm import tqdm  # noqa: E402

from hermetiq.evaluate import harness  # noqa: E402
from hermetiq.evaluate.harness import Suite  # noqa: E402

# The harness's own, and those of what it imports.
pytestmark = pytest.mark.filterwarnings("ignore")

TASKS = Path(__file__).parent / "tasks"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where the task files find their data, a cache of our own, and no way out."""
    import datasets

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a connection was opened: {arguments}")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture(scope="module")
def out(exported_hermes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Q8_0 and Q4_K_M."""
    folder = Path(shutil.copytree(exported_hermes, tmp_path_factory.mktemp("evaluated") / "out"))
    manifest = Manifest.read(folder)
    replace(manifest, artifacts=manifest.artifacts[1:]).write(folder)
    return folder


@pytest.fixture(scope="module")
def evaluation(out: Path, trained_hermes: Path) -> Evaluation:
    return evaluate(out, open_checkpoint(trained_hermes), ["hermes_small"], tasks_path=TASKS)


def values(found: Evaluation, file: str = "") -> dict[str, float | None]:
    scores = next((item.scores for item in found.artifacts if item.file == file), found.source)
    return {f"{score.task} {score.metric}": score.value for score in scores}


def test_the_source_scores_what_it_was_trained_to_say(evaluation: Evaluation) -> None:
    assert values(evaluation) == {
        "hermes_choice acc": 0.8,
        "hermes_choice acc_norm": 0.8,
        "hermes_answer exact_match": 1.0,
        "hermes_small acc": 0.8,
    }
    (choice, _, answer, group) = evaluation.source
    assert (choice.version, choice.filter, choice.shots, choice.higher_is_better) == ("1.0", "none", 0, True)
    assert choice.stderr == pytest.approx(0.2)
    assert (choice.documents, answer.documents, group.documents) == (5, 4, None)
    assert group.version == "2"


def test_every_artifact_is_beside_it(evaluation: Evaluation, out: Path) -> None:
    artifacts = Manifest.read(out).artifacts
    assert [(item.file, item.sha256) for item in evaluation.artifacts] == [(a.file, a.sha256) for a in artifacts]
    for item in evaluation.artifacts:
        assert values(evaluation, item.file) == values(evaluation)
    assert Evaluation.read(out) == evaluation


def test_the_command_prints_json_and_writes_the_same_bytes_again(
    evaluation: Evaluation, out: Path, trained_hermes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (out / EVALUATION).read_bytes()
    with pytest.raises(SystemExit) as stop:
        cli.main(["eval", str(out), "--source", str(trained_hermes), "--tasks", "hermes_small,", "--tasks-path",
                  str(TASKS), "--json"])  # fmt: skip
    shown = capsys.readouterr()
    assert not stop.value.code
    assert shown.err == ""
    assert json.loads(shown.out) == json.loads(before)
    assert (out / EVALUATION).read_bytes() == before


def test_an_artifact_that_does_not_fit_is_told(
    out: Path, trained_hermes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(out, tmp_path / "out"))
    lacking = iter(["", "", "needs more"])
    monkeypatch.setattr(native, "memory_lacking", lambda checkpoint: next(lacking))
    found = evaluate(folder, open_checkpoint(trained_hermes), ["hermes_choice"], tasks_path=TASKS, limit=2)
    assert [item.file for item in found.artifacts] == ["gguf/tiny-hermes-Q8_0.gguf"]
    assert found.notes == ("gguf/tiny-hermes-Q4_K_M.gguf was not evaluated: needs more",)
    assert (found.limit, found.source[0].documents) == (2, 2)
    assert Evaluation.read(folder) == found


def test_models_end_at_the_stops_and_a_cut_keeps_what_was_measured(
    out: Path, trained_hermes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(out, tmp_path / "out", ignore=shutil.ignore_patterns(EVALUATION)))
    stops = []

    def scores(suite: Suite, model: Any, tokenizer: Any, **how: Any) -> tuple[Score, ...]:
        stops.append(model.generation_config.eos_token_id)
        if len(stops) == 3:
            raise KeyboardInterrupt
        return ()

    monkeypatch.setattr(Suite, "scores", scores)
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, open_checkpoint(trained_hermes), ["hermes_choice"], tasks_path=TASKS)
    assert stops == [list(Manifest.read(folder).source.contract.stop_ids)] * 3
    kept = Evaluation.read(folder)
    assert kept is not None
    assert [item.file for item in kept.artifacts] == ["gguf/tiny-hermes-Q8_0.gguf"]


def test_a_source_that_does_not_fit_is_refused(
    out: Path, trained_hermes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "memory_lacking", lambda checkpoint: "needs more")
    with pytest.raises(HermetiqError, match="does not fit into memory: needs more"):
        evaluate(out, open_checkpoint(trained_hermes), ["hermes_choice"], tasks_path=TASKS)


def test_changed_bytes_are_not_evaluated(out: Path, trained_hermes: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(out, tmp_path / "out"))
    path = folder / Manifest.read(folder).artifacts[1].file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(HermetiqError, match="not those that were exported"):
        evaluate(folder, open_checkpoint(trained_hermes), ["hermes_choice"], tasks_path=TASKS)


def test_a_wrong_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the harness's own thousands of tasks.
    monkeypatch.setattr(harness, "TaskManager", partial(harness.TaskManager, include_defaults=False))
    with pytest.raises(HermetiqError, match="no task of this name: hermes_chioce"):
        Suite(["hermes_choice", "hermes_chioce"], folder=TASKS, allow_code=False)
    with pytest.raises(HermetiqError, match="no task"):
        Suite([], folder=TASKS, allow_code=False)


def test_a_group_may_have_tasks_of_the_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the harness's own are looked at too; here they are those of the tests."""

    def manager(include_path: str | None, include_defaults: bool = True) -> TaskManager:
        paths = [str(TASKS)] * include_defaults + [include_path or []]
        return TaskManager(include_path=paths, include_defaults=False)

    monkeypatch.setattr(harness, "TaskManager", manager)
    (tmp_path / "own.yaml").write_text("group: own\ntask: [hermes_choice, {task: hermes_answer, num_fewshot: 1}]\n")
    suite = Suite(["own"], folder=tmp_path, allow_code=False)
    assert suite.names == ["own"]


DATA = f"dataset_kwargs: {{data_files: {{test: {TASKS / 'hermes_choice.jsonl'}}}}}\n"


def own_task(folder: Path, text: str) -> Path:
    """A folder with a task `own` and Python beside it."""
    (folder / "own.py").write_text("def text(doc):\n    return doc['question'].upper()\n")
    (folder / "own.yaml").write_text(
        "task: own\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\ndoc_to_choice: choices\n"
        f"doc_to_target: answer\n{text}"
    )
    return folder


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("doc_to_text: question\ndataset_kwargs: {data_files: {test: nowhere.jsonl}}", "nowhere.jsonl"),
        ("doc_to_text: question\n" + DATA.replace("{data", "{trust_remote_code: true, data"), "code of its data set"),
        ("doc_to_text: '{{ question.__class__.__mro__ }}'\n" + DATA, "unsafe"),
        ("doc_to_text: !function own.text\n" + DATA, "runs Python"),
    ],
)
def test_a_task_that_cannot_or_must_not_be_run(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(HermetiqError, match=told):
        Suite(["own"], folder=own_task(tmp_path, text), allow_code=False)


def test_code_is_run_where_it_is_allowed(tmp_path: Path) -> None:
    folder = own_task(tmp_path, "doc_to_text: !function own.text\n" + DATA)
    assert Suite(["own"], folder=folder, allow_code=True).names == ["own"]


def test_the_harness_is_left_as_it_was() -> None:
    before = lm_eval.utils.env, tqdm.__init__
    Suite(["hermes_choice"], folder=TASKS, allow_code=False)
    assert (lm_eval.utils.env, tqdm.__init__) == before
