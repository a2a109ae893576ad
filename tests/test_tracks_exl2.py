"""EXL2 through the one pass: measured, allocated, rounded behind it, and measured no second time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hermetiq import measurement, tracks
from hermetiq.checkpoint import open_checkpoint
from hermetiq.errors import HermetiqError, Refusal
from hermetiq.formats.linear_plan import linears
from hermetiq.manifest import Manifest
from hermetiq.measurement import Measurement
from hermetiq.model import EMBEDDING, HEAD
from hermetiq.pipeline import export, prepare
from hermetiq.plan import Job
from hermetiq.quantize.ladder import LADDER
from hermetiq.quantize.spec import parse
from hermetiq.verify import verify
from tests.fixtures.forks import content
from tests.fixtures.models import tiny_checkpoint
from tests.oracles import exl2_bytes

ROWS: Mapping[str, Any] = {"rows": 4, "row_tokens": 48}
SPECS = ("exl2:4.0bpw", "exl2:3.0bpw-h8", "gptq:4bit-g32", "gguf:Q4_K_M", "gguf:Q8_0")
FOUR, THREE = "exl2-4.0bpw", "exl2-3.0bpw-h8"


@cache
def asked(model: Path, *specs: str, **options: Any) -> Job:
    return prepare(model, [parse(spec) for spec in specs], **{**ROWS, **options})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied, with biases, and wide enough for the cost of an order and of scales to be small."""
    folder = tmp_path_factory.mktemp("exl2") / "model"
    return tiny_checkpoint(folder, family="qwen2", tokenizer="bpe", hidden=256, intermediate=352, tied=True)


@pytest.fixture(scope="module")
def out(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two targets beside GPTQ and two GGUF files."""
    folder = tmp_path_factory.mktemp("exl2") / "out"
    export(asked(model, *SPECS), folder)
    return folder


def stored(out: Path, path: str) -> dict[str, Tensor]:
    return load_file(out / path / "output.safetensors")


def test_all_formats_are_made_from_one_walk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walks, loads = list[int](), Counter[str]()
    observe, load = tracks.observe, type(asked(model, *SPECS).source).load

    def walked(*arguments: Any, **options: Any) -> None:
        walks.append(1)
        loads.clear()
        observe(*arguments, **options)
        assert {count for name, count in loads.items() if "_proj" in name} == {1}

    def loaded(self: Any, name: str) -> Tensor:
        loads[name] += 1
        return load(self, name)

    monkeypatch.setattr(tracks, "observe", walked)
    monkeypatch.setattr(type(asked(model, *SPECS).source), "load", loaded)
    made = export(asked(model, *SPECS), tmp_path / "out")
    assert walks == [1]
    assert made.measurement
    assert made.calibration
    assert made.calibration.serves == tuple(item.file for item in made.artifacts)
    assert [item.spec for item in made.artifacts] == list(SPECS)


def test_targets_are_hit_from_below(out: Path) -> None:
    for artifact, target in zip(Manifest.read(out).artifacts, (4.0, 3.0), strict=False):
        assert 0.995 * target <= artifact.nominal_bpw <= target


def test_the_sizes_are_those_of_the_tensors(model: Path, out: Path) -> None:
    shapes = linears(open_checkpoint(model).model)
    weights = sum(height * width for height, width in shapes.values())
    for artifact, planned in zip(Manifest.read(out).artifacts[:2], asked(model, *SPECS).plan.files, strict=False):
        tensors = stored(out, artifact.file)
        bits = {
            part: sum(8 * tensors[f"{module}.{part}"].nbytes for module in shapes)
            for part in ("q_weight", "q_scale", "q_scale_max", "q_groups", "q_invperm")
        }
        assert artifact.nominal_bpw == pytest.approx(sum(bits.values()) / weights)
        # Nothing is known of the widths when it is planned, and yet the size is.
        actual = sum(tensor.nbytes for tensor in tensors.values())
        assert 0.995 * planned.bytes <= actual <= planned.bytes
        assert planned.name == artifact.file


def test_the_manifest_tells_the_widths_that_are_stored(model: Path, out: Path) -> None:
    rungs = {str(rung): rung for rung in LADDER}
    shapes = linears(open_checkpoint(model).model)
    for artifact in Manifest.read(out).artifacts[:2]:
        assert artifact.widths.keys() == shapes.keys()
        tensors = stored(out, artifact.file)
        for module, name in artifact.widths.items():
            groups = rungs[name].groups(shapes[module][1])
            assert tensors[f"{module}.q_groups"][::2].tolist() == [bits for bits, _ in groups]
        head = 8 if artifact.file == THREE else 6
        assert set(tensors["lm_head.q_groups"][::2].tolist()) == {head}
    four, three = Manifest.read(out).artifacts[:2]
    assert four.expected_kl is not None
    assert three.expected_kl is not None
    assert 0 < four.expected_kl < three.expected_kl


def test_the_weights_are_read_back_the_nearer_the_more_bits_they_have(model: Path, out: Path) -> None:
    source, four, three = open_checkpoint(model), open_checkpoint(out / FOUR), open_checkpoint(out / THREE)
    assert not four.model.tied
    assert json.loads((out / FOUR / "config.json").read_text())["tie_word_embeddings"] is False
    head = source.load(EMBEDDING).float()
    for checkpoint, near in ((four, 0.05), (three, 0.012)):
        assert (checkpoint.load(HEAD) - head).norm() < near * head.norm()
        torch.testing.assert_close(checkpoint.load(EMBEDDING).float(), head, rtol=1e-3, atol=1e-6)
    # Not folded, and of an input that nothing else shares.
    name = "model.layers.0.self_attn.q_proj.bias"
    assert four.load(name).norm() > 0
    assert four.tensors[name].shape == source.tensors[name].shape


def test_every_linear_of_a_folder_is_what_a_decoder_by_hand_reads(tmp_path: Path) -> None:
    """Ragged: rows of 96 and 160 in groups of 64 and 128, and a head that is padded."""
    shape: Mapping[str, Any] = {"hidden": 96, "intermediate": 160, "heads": 3, "kv_heads": 1, "rows": 803}
    source = tiny_checkpoint(tmp_path / "model", family="qwen2", tokenizer="bpe", tied=True, **shape)
    (artifact,) = export(asked(source, "exl2:4.5bpw"), tmp_path / "out").artifacts
    tensors, checkpoint = stored(tmp_path / "out", artifact.file), open_checkpoint(tmp_path / "out" / artifact.file)
    assert len(set(artifact.widths.values())) > 1
    for module, (height, width) in {**linears(checkpoint.model), "lm_head": (803, 96)}.items():
        parts = {part: tensors[f"{module}.{part}"] for part in ("q_weight", "q_scale", "q_groups", "q_invperm")}
        decoded = exl2_bytes.dequantized(
            parts["q_weight"].tolist(),
            parts["q_scale"].tolist(),
            tensors[f"{module}.q_scale_max"].tolist(),
            parts["q_groups"].tolist(),
            parts["q_invperm"].tolist(),
        )
        assert len(decoded) == height + -height % 32
        found = checkpoint.load(f"{module}.weight")
        assert found.shape == (height, width)
        assert torch.equal(found, torch.tensor(decoded)[:height])


def test_a_measurement_makes_the_same_folder_without_measuring(
    model: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hermetiq.quantize.block.measure", None)
    again = asked(model, "exl2:4.0bpw", measurement=out / measurement.FILE)
    made = export(again, tmp_path / "again")
    assert content(tmp_path / "again" / FOUR) == content(out / FOUR)
    assert (tmp_path / "again" / measurement.FILE).read_bytes() == (out / measurement.FILE).read_bytes()
    assert made.measurement == Manifest.read(out).measurement
    # Nothing has to be kept for a second round.
    assert again.plan.disk < asked(model, "exl2:4.0bpw").plan.disk


def test_a_finished_export_by_another_measurement_is_another(model: Path, out: Path, tmp_path: Path) -> None:
    same = asked(model, "exl2:4.0bpw", measurement=out / measurement.FILE)
    made = export(same, tmp_path / "again")
    assert export(same, tmp_path / "again", resume=True) == made
    document = json.loads((out / measurement.FILE).read_text())
    document["layers"]["model.layers.0.mlp.up_proj"]["factor"] *= 2
    (tmp_path / "other.json").write_text(json.dumps(document))
    with pytest.raises(HermetiqError, match="not empty"):
        export(asked(model, "exl2:4.0bpw", measurement=tmp_path / "other.json"), tmp_path / "again", resume=True)


def test_another_target_of_a_measurement(model: Path, out: Path, tmp_path: Path) -> None:
    job = asked(model, "exl2:6.0bpw", "gptq:4bit-g32", measurement=out / measurement.FILE)
    (artifact, _) = export(job, tmp_path / "out").artifacts
    assert 0.995 * 6 <= artifact.nominal_bpw <= 6
    known = Measurement.read(out / measurement.FILE)
    assert artifact.widths == {name: str(rung) for name, rung in known.allocated(6.0).items()}


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("gptq:4bit-g32", {"measurement": measurement.FILE}, "serves EXL2 alone"),
        ("exl2:4.0bpw", {"measurement": "nothing.json"}, "nothing.json"),
        ("exl2:4.0bpw", {"measurement": "hermetiq.json"}, "hermetiq.json"),
        ("exl2:4.0bpw", {"sequential": True}, "follows one GPTQ or AWQ artifact"),
    ],
)
def test_what_does_not_go_together_is_refused(
    model: Path, out: Path, spec: str, options: dict[str, Any], message: str
) -> None:
    given = {name: out / value if name == "measurement" else value for name, value in options.items()}
    with pytest.raises(HermetiqError, match=message):
        prepare(model, [parse(spec)], **{**ROWS, **given})


def test_a_measurement_of_another_model_is_refused(out: Path, tmp_path: Path) -> None:
    sizes: Mapping[str, Any] = {"hidden": 256, "intermediate": 352, "tied": True, "seed": 1}
    other = tiny_checkpoint(tmp_path / "other", family="qwen2", tokenizer="bpe", **sizes)
    with pytest.raises(HermetiqError, match="source with fingerprint"):
        asked(other, "exl2:4.0bpw", measurement=out / measurement.FILE)


def test_a_target_that_no_widths_reach_is_refused_with_the_least(tmp_path: Path) -> None:
    narrow = tiny_checkpoint(tmp_path / "narrow", family="llama", tokenizer="bpe", hidden=64, intermediate=64)
    with pytest.raises(Refusal, match="bits-reach"):
        asked(narrow, "exl2:2.1bpw")


def test_bits_that_could_not_be_spent_are_told(tmp_path: Path) -> None:
    """In a model of a few small layers no choice of widths comes near enough."""
    small = tiny_checkpoint(tmp_path / "small", family="llama", tokenizer="bpe", hidden=64, kv_heads=2, layers=1)
    made = export(asked(small, "exl2:7.9bpw"), tmp_path / "out")
    (artifact,) = made.artifacts
    told = [found for found in made.source.findings if found.rule == "bits-unspent"]
    assert [(found.file, found.found) for found in told] == [
        (artifact.file, f"{artifact.nominal_bpw:.3f} bits per weight")
    ]
    assert artifact.nominal_bpw < 0.995 * 7.9


def test_formats_that_have_ended_are_said_to_be(model: Path) -> None:
    assert "legacy-format" in {found.rule for found in asked(model, *SPECS).findings}
    assert "legacy-format" not in {found.rule for found in asked(model, "gptq:4bit-g32").findings}


def test_two_exports_have_the_same_bytes(model: Path, out: Path, tmp_path: Path) -> None:
    export(asked(model, *SPECS), tmp_path / "out")
    assert content(tmp_path / "out") == content(out)


def test_a_model_that_talks_still_ends_its_turns(trained_hermes: Path, tmp_path: Path) -> None:
    """At four bits all is well; at two and a half the report says what is not, to whoever asks for more."""
    job = prepare(trained_hermes, [parse("exl2:4.0bpw"), parse("exl2:2.5bpw")], rows=32, row_tokens=128)
    export(job, tmp_path / "out")
    good, poor = verify(tmp_path / "out", open_checkpoint(trained_hermes), max_kl=0.03)
    assert good.passed
    assert (good.stops, poor.stops) == ("8/8", "8/8")
    assert abs(good.terminator) < 0.05
    assert [check.name for check in poor.checks if not check.passed] == ["kl"]
