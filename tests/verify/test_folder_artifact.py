"""Verification of GPTQ, AWQ and EXL2 folders: healthy ones pass, and each planted fault fails its checks, by name."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from hermetiq.chat.contract import derive
from hermetiq.checkpoint import Checkpoint, open_checkpoint
from hermetiq.errors import HermetiqError
from hermetiq.formats.legacy import legacy_note
from hermetiq.manifest import Artifact, Manifest, Source, combined_sha256, sha256_of
from hermetiq.progress import silent
from hermetiq.quantize.spec import parse
from hermetiq.runtimes import cuda
from hermetiq.verify import ArtifactReport, folder_artifact, native, reference, verify
from hermetiq.verify.examined import Examined, Stored
from hermetiq.verify.reference import Reference
from tests.fixtures.models import edit_json
from tests.fixtures.packed import packed_folder
from tests.verify.test_verify import failed, small_questions

IM_END = 32000
GPTQ, AWQ, EXL2 = "gptq:4bit-g64", "awq:4bit-g64", "exl2:8.0bpw"
CHECKS = "bytes contract stops tokens bos tensors-lost never-stops tag-rows kl top1 terminator smoke-stops smoke-leaks"


def signed(out: Path, name: str, spec: str) -> Artifact:
    """What a manifest in `out` says of the folder as it is now."""
    files = {path.relative_to(out).as_posix(): sha256_of(path) for path in sorted((out / name).rglob("*"))}
    size = sum((out / file).stat().st_size for file in files)
    return Artifact(spec, name, combined_sha256(files), files, size, bpw=9.0, nominal_bpw=4.25)


def stored(out: Path, name: str, spec: str = GPTQ) -> Stored:
    artifact = signed(out, name, spec)
    return Stored(artifact, out / name, {file: out / file for file in artifact.files})


def write_manifest(out: Path, source: Checkpoint, artifacts: dict[str, str]) -> None:
    """For folders in `out`, with their specs."""
    described = Source("m", source.fingerprint(), source.provenance, derive(source))
    Manifest(described, tuple(signed(out, name, spec) for name, spec in artifacts.items())).write(out)


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    (path,) = folder.glob("*.safetensors")
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def cannot_end(folder: Path) -> None:
    change_weights(folder, lambda weights: weights["lm_head.weight"][IM_END].zero_())


def not_a_number(folder: Path) -> None:
    change_weights(folder, lambda weights: weights["model.layers.1.mlp.up_proj.scales"][0, 3].fill_(math.nan))


def nan_in_a_norm(folder: Path) -> None:
    change_weights(folder, lambda weights: weights["model.norm.weight"][0].fill_(math.nan))


def without_a_layers_scales(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.__delitem__("model.layers.1.mlp.up_proj.scales"))


def zeros_of_another_version(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit_json(
        folder / "config.json", quantization_config=config["quantization_config"] | {"checkpoint_format": "gptq_v2"}
    )


FAULTS: dict[Callable[[Path], None], tuple[set[str], set[str]]] = {
    cannot_end: ({"tag-rows", "terminator", "smoke-stops"}, {"kl", "top1", "smoke-leaks"}),
    not_a_number: ({"runtime", "kl"}, set()),
    nan_in_a_norm: ({"kl", "top1", "terminator"}, {"smoke-stops", "smoke-leaks"}),
    without_a_layers_scales: ({"tensors-lost", "contract"}, set()),
    zeros_of_another_version: ({"kl", "top1"}, {"terminator", "smoke-stops", "smoke-leaks"}),
}
"""Faults in the weights; the checks that fail for each, and others that may."""


@pytest.fixture(scope="module")
def packed(trained_hermes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model as GPTQ; copy it to break it."""
    return packed_folder(tmp_path_factory.mktemp("packed") / "m", trained_hermes, parse(GPTQ))


@pytest.fixture(scope="module")
def verified(
    packed: Path, trained_hermes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, ArtifactReport]]]:
    """Healthy folders and one for every fault, with their reports by name."""
    out = tmp_path_factory.mktemp("folders") / "out"
    shutil.copytree(packed, out / "gptq/m")
    packed_folder(out / "awq/m", trained_hermes, parse(AWQ))
    packed_folder(out / "exl2/m", trained_hermes, parse(EXL2))
    artifacts = {"gptq/m": GPTQ, "awq/m": AWQ, "exl2/m": EXL2}
    for fault in FAULTS:
        name = f"gptq/{fault.__name__}"
        shutil.copytree(packed, out / name)
        fault(out / name)
        artifacts[name] = GPTQ
    source = open_checkpoint(trained_hermes)
    write_manifest(out, source, artifacts)
    with small_questions(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "lacking", lambda: "no GPU that torch sees")
        reports = verify(out, source)
    yield out, {report.file: report for report in reports}
    shutil.rmtree(out)


@pytest.mark.parametrize("file", ["gptq/m", "awq/m", "exl2/m"])
def test_a_healthy_folder_passes_every_check(verified: tuple[Path, dict[str, ArtifactReport]], file: str) -> None:
    report = verified[1][file]
    assert report.passed, report.checks
    assert [check.name for check in report.checks] == CHECKS.split()
    assert report.stops == "4/4"
    assert 0 < report.kl < math.inf
    assert report.verification.figures["smoke_stopped"] == 4


def test_exl2_alone_is_noted_as_legacy_and_as_unasked_in_its_own_reader(
    verified: tuple[Path, dict[str, ArtifactReport]],
) -> None:
    notes = {file: verified[1][file].verification.notes for file in ("gptq/m", "awq/m", "exl2/m")}
    legacy, unasked = notes.pop("exl2/m")
    assert legacy == legacy_note(parse(EXL2))
    assert unasked == "exllamav2, the one reader of exl2, was not asked: no GPU that torch sees"
    assert set(notes.values()) == {()}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_in_the_weights_fails_its_checks_and_no_other(
    verified: tuple[Path, dict[str, ArtifactReport]], fault: Callable[[Path], None]
) -> None:
    report = verified[1][f"gptq/{fault.__name__}"]
    must, may = FAULTS[fault]
    assert must <= failed(report) <= must | may
    assert all(check.reason for check in report.checks if not check.passed)


def test_the_manifest_keeps_no_folder_of_this_machine(verified: tuple[Path, dict[str, ArtifactReport]]) -> None:
    out, reports = verified
    assert str(out) not in (out / "hermetiq.json").read_text()
    assert Manifest.read(out).verification == {report.file: report.verification for report in reports.values()}


@pytest.fixture(scope="module")
def asked(trained_hermes: Path) -> Reference:
    with small_questions():
        return reference.read(open_checkpoint(trained_hermes))


@pytest.fixture
def copied(packed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packed, tmp_path / "out/m", copy_function=link).parent


def link(source: str, target: str) -> None:
    """Weights are linked, and not written into by the tests that use this."""
    if source.endswith(".safetensors"):
        Path(target).hardlink_to(source)
    else:
        shutil.copyfile(source, target)


@contextmanager
def without_answers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "answers", lambda *_: ())
        yield


def outcome(examined: Examined) -> set[str]:
    return {check.name for check in examined.findings.checks if not check.passed}


def further_stop(folder: Path) -> None:
    edit_json(folder / "generation_config.json", eos_token_id=[IM_END, 2])


def other_class(folder: Path) -> None:
    """transformers builds this one anew from the vocabulary, with other ids."""
    edit_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    edit_json(folder / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])


def bos_not_put(folder: Path) -> None:
    """tokenizer_config.json asks for BOS; transformers 5 goes by tokenizer.json."""
    text = {"Sequence": {"id": "A", "type_id": 0}}
    processor = {"type": "TemplateProcessing", "single": [text], "pair": [text], "special_tokens": {}}
    edit_json(folder / "tokenizer.json", post_processor=processor)


def code_for_the_tokenizer(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("fault", "checks"),
    [
        (further_stop, {"contract", "stops"}),
        (other_class, {"tokens"}),
        (bos_not_put, {"bos"}),
        (code_for_the_tokenizer, {"contract"}),
        (no_tokenizer, {"contract"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_in_the_small_files_fails_its_checks(
    copied: Path, asked: Reference, fault: Callable[[Path], None], checks: set[str]
) -> None:
    fault(copied / "m")
    with without_answers():
        examined = folder_artifact.examine(stored(copied, "m"), asked, silent)
    assert outcome(examined) == checks
    assert str(copied) not in repr(examined.findings)


def test_changed_bytes_and_strangers_are_seen(copied: Path, asked: Reference) -> None:
    before = stored(copied, "m")
    edit_json(copied / "m/quantize_config.json", note="edited")
    (copied / "m/run_me.py").write_text("print()")
    with without_answers():
        examined = folder_artifact.examine(before, asked, silent)
    assert outcome(examined) == {"bytes"}
    assert examined.findings.checks[0].reason == "the bytes are not those that were exported: m/quantize_config.json"
    assert examined.findings.notes == ("m holds files that the export did not write: run_me.py",)


def test_where_the_model_does_not_fit_nothing_is_pretended(
    copied: Path, asked: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "free_memory", lambda: 10_000_000)
    examined = folder_artifact.examine(stored(copied, "m"), asked, silent)
    assert outcome(examined) == set()
    assert examined.answers is None
    assert examined.findings.figures["smoke_unasked"] == len(asked.smoke)
    (note,) = examined.findings.notes
    assert note.startswith("m: smoke was not run natively: needs 0.1 GB, 0.0 GB free; ")
    assert "named by --runtime" in note


def test_a_missing_file_is_unusable_input(copied: Path, trained_hermes: Path) -> None:
    source = open_checkpoint(trained_hermes)
    write_manifest(copied, source, {"m": GPTQ})
    (copied / "m/tokenizer.json").unlink()
    with pytest.raises(HermetiqError, match=r"tokenizer\.json.*not there"):
        verify(copied, source)
