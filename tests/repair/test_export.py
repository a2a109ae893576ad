"""Exports that repair first: the same artifacts as from a repaired copy, told in the manifest, verified as usual."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from hermetiq import cli
from hermetiq.api import verify as verifying
from hermetiq.errors import HermetiqError, Refusal
from hermetiq.manifest import Manifest
from hermetiq.pipeline import export, prepare
from hermetiq.quantize.spec import parse
from hermetiq.repair import InitTags, repair
from hermetiq.verify import open_source
from tests.fixtures.models import edit_json, tiny_checkpoint
from tests.repair.test_repair import EMBEDDING, END, END_ID, WEIGHTS, contents

SPECS = [parse("gguf:F32")]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The EOS of another model, a tag that was never trained, a list that old readers fail on, and a wrong size."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("export") / "faulty", family="qwen2", tokenizer="bpe")
    edit_json(folder / "config.json", eos_token_id=800, vocab_size=700)
    edit_json(folder / "tokenizer_config.json", extra_special_tokens=[END])
    tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
    tensors[EMBEDDING][END_ID] = 0
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("export") / "parent", family="qwen2", tokenizer="bpe", seed=1)


def artifacts(folder: Path) -> dict[str, str]:
    return dict(Manifest.read(folder).files)


def test_an_export_that_repairs_is_that_of_the_repaired_copy(faulty: Path, parent: Path, tmp_path: Path) -> None:
    before = contents(faulty)
    init = InitTags("parent", str(parent))
    job = prepare(faulty, SPECS, name="m", repair=True, init_tags=init)
    manifest = export(job, tmp_path / "out")
    assert contents(faulty) == before
    # Artifacts carry the folder's name.
    account = repair(str(faulty), tmp_path / "copy" / faulty.name, init_tags=init)
    assert manifest.repairs == account.changes
    assert {"eos-mismatch", "vocab-rows", "special-lists", "tag-untrained"} <= {each.rule for each in account.changes}
    export(prepare(tmp_path / "copy" / faulty.name, SPECS, name="m"), tmp_path / "from-copy")
    assert artifacts(tmp_path / "out") == artifacts(tmp_path / "from-copy")
    stored = Manifest.read(tmp_path / "out")
    assert stored.repairs == account.changes
    assert stored.init_tags == "parent"
    assert str(parent) not in (tmp_path / "out" / "hermetiq.json").read_text(encoding="utf-8")
    # A verification opens the source as the export saw it; the parent's path has to be told again.
    again = open_source(tmp_path / "out", str(faulty), init_tags=init)
    assert again.fingerprint() == stored.source.fingerprint
    with pytest.raises(HermetiqError, match="--init-tags parent:PATH"):
        open_source(tmp_path / "out", str(faulty))
    with pytest.raises(HermetiqError, match="made with --init-tags parent"):
        open_source(tmp_path / "out", str(faulty), init_tags=InitTags("mean"))


def test_without_repair_the_same_source_is_refused_and_another_source(faulty: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refused:
        prepare(faulty, SPECS)
    assert {"eos-mismatch", "vocab-rows", "tag-untrained"} <= {item.rule for item in refused.value.findings}
    ignored = ("eos-mismatch", "vocab-rows", "tag-untrained")
    plain = prepare(faulty, SPECS, ignore=ignored)
    mended = prepare(faulty, SPECS, ignore=ignored, repair=True)
    assert plain.fingerprint != mended.fingerprint
    assert (plain.repairs, plain.plan.repairs) == (None, None)
    assert mended.plan.repairs == mended.repairs != ()
    assert mended.fingerprint == prepare(faulty, SPECS, ignore=ignored, repair=True).fingerprint
    # What a finished export was made of decides whether there is anything to resume.
    first = export(mended, tmp_path / "out")
    assert export(mended, tmp_path / "out", resume=True) == first
    with pytest.raises(HermetiqError):
        export(plain, tmp_path / "out", resume=True)


def test_the_command_repairs_tells_and_verifies_without_being_told_again(
    faulty: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    wish = ["--to", "gguf:F32", "--repair", "--init-tags", "mean", "--ignore", "tag-untrained", "--json"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", str(faulty), str(out), *wish])
    assert stop.value.code == 0
    told = capfd.readouterr()
    changed = {(each["file"], each["field"]): each for each in json.loads(told.out)["repairs"]}
    change = changed["config.json", "eos_token_id"]
    assert (change["rule"], change["old"], change["new"]) == ("eos-mismatch", "800", "[802, 800]")
    assert "changed eos-mismatch config.json: eos_token_id\n    from 800 to [802, 800]" in told.err
    seen: list[str] = []
    monkeypatch.setattr(verifying, "hold_against", lambda folder, source, **_: seen.append(source.fingerprint()) or ())
    with pytest.raises(SystemExit) as stop:
        cli.main(["verify", str(out), "--source", str(faulty), "--json"])
    assert stop.value.code == 0
    assert seen == [Manifest.read(out).source.fingerprint]


REFUSED = {
    "add --repair": ("", "--init-tags", "mean"),
    "unknown start": ("", "--repair", "--init-tags", "zeros"),
    "no token": ("", "--repair", "--init-tags", "copy:<|nobody|>"),
    "no such file": ("nowhere", "--repair"),
}


def test_a_gguf_has_nothing_to_repair(faulty: Path, tmp_path: Path) -> None:
    export(prepare(faulty, SPECS, name="m", repair=True, ignore=("tag-untrained",)), tmp_path / "made")
    with pytest.raises(HermetiqError, match="none of the files that a repair mends"):
        prepare(tmp_path / "made" / "gguf" / "m-F32.gguf", SPECS, repair=True)


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_repair_can_begin_with_is_said(
    what: str, faulty: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place, *options = REFUSED[what]
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", str(faulty / place), str(tmp_path / "out"), "--to", "gguf:F32", *options])
    assert stop.value.code == 2
    assert what in capfd.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("repairs", ["yes", [{"rule": "x"}], [1], {"0": "a"}])
def test_a_manifest_with_other_repairs_is_not_believed(repairs: object, faulty: Path, tmp_path: Path) -> None:
    job = prepare(faulty, SPECS, repair=True, ignore=("tag-untrained",))
    export(job, tmp_path / "out")
    edit_json(tmp_path / "out" / "hermetiq.json", repairs=repairs)
    with pytest.raises(HermetiqError, match="repairs"):
        open_source(tmp_path / "out", str(faulty))
