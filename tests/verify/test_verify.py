"""Verification of whole files: a healthy export passes, and every planted fault fails the checks it should, by name.

All files lie in one folder with one manifest and are verified in one go. The chats that the fixture was trained on take
the place of the built-in ones: a model that knows its answers shows faults sharply, and little text has to be read.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hermetiq.calibration.corpus import Chat
from hermetiq.checkpoint import gguf_source, open_checkpoint
from hermetiq.errors import HermetiqError
from hermetiq.formats.gguf.names import interleaved_rows
from hermetiq.manifest import Artifact, Manifest, sha256_of
from hermetiq.model import ModelConfig
from hermetiq.pipeline import export, prepare
from hermetiq.quantize.spec import parse
from hermetiq.verify import ArtifactReport, observe, reference, verify
from hermetiq.verify.strings import parity_strings
from tests.fixtures.gguf_edits import replace_once, set_number, set_token, stored_tensors, token_texts
from tests.fixtures.hermes import CHATS
from tests.fixtures.models import copy_of, tiny_checkpoint

Q8_0 = "gguf/tiny-hermes-Q8_0.gguf"
IM_END, IM_START = 32000, 32001
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64


def wrong_eos(path: Path) -> None:
    set_number(path, "tokenizer.ggml.eos_token_id", 2)
    set_number(path, "tokenizer.ggml.eot_token_id", 2)


def tag_is_text(path: Path) -> None:
    set_number(path, "tokenizer.ggml.token_type", 1, at=IM_START)


def tokens_swapped(path: Path) -> None:
    texts = token_texts(path)
    (one,) = (index for index, text in enumerate(texts) if text == "▁the".encode())
    (other,) = (index for index, text in enumerate(texts) if text == "▁and".encode())
    set_token(path, one, texts[other])
    set_token(path, other, texts[one])


def other_template(path: Path) -> None:
    replace_once(path, b"'<|im_start|>assistant\\n'", b"'<|im_start|>assistant  '")


def in_the_sources_row_order(path: Path) -> None:
    """As a writer makes it that forgets to reorder q and k."""
    with stored_tensors(path) as stored:
        for layer in range(3):
            for part, heads in (("q", HEADS), ("k", KV_HEADS)):
                rows = stored[f"blk.{layer}.attn_{part}.weight"]
                rows[interleaved_rows(heads, HEAD_DIM)] = rows.copy()


def first_and_last_block_swapped(path: Path) -> None:
    with stored_tensors(path) as stored:
        for first in (name for name in stored if name.startswith("blk.0.")):
            one, other = stored[first], stored[first.replace("blk.0.", "blk.2.")]
            one[:], other[:] = other.copy(), one.copy()


def noise(path: Path) -> None:
    with stored_tensors(path) as stored:
        blocks = stored["blk.1.ffn_down.weight"].reshape(-1, 34)
        blocks[:, 2:] = np.random.default_rng(0).integers(0, 256, blocks[:, 2:].shape, np.uint8)


def not_a_number(path: Path) -> None:
    with stored_tensors(path) as stored:
        stored["blk.1.ffn_up.weight"][3, 0:2] = (0x00, 0x7E)  # the first block's scale, a half


def cannot_stop(path: Path) -> None:
    with stored_tensors(path) as stored:
        stored["output.weight"][IM_END] = 0


def one_bit(path: Path) -> None:
    with stored_tensors(path) as stored:
        stored["token_embd.weight"][1000, 2] ^= 1


def duplicate_token(path: Path) -> None:
    texts = token_texts(path)
    twin = next(index for index in range(301, IM_END) if len(texts[index]) == len(texts[300]))
    set_token(path, twin, texts[300])


def tensor_renamed(path: Path) -> None:
    replace_once(path, b"blk.2.ffn_up.weight", b"blk.2.ffn_xx.weight")


def half_a_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SMOKE = {"smoke-stops", "smoke-leaks"}
FAULTS: dict[Callable[[Path], None], tuple[set[str], set[str]]] = {
    wrong_eos: ({"contract"}, set()),
    tag_is_text: ({"tokens"}, set()),
    tokens_swapped: ({"tokens"}, set()),
    other_template: ({"contract"}, set()),
    in_the_sources_row_order: ({"kl", "top1"}, {"terminator", *SMOKE}),
    noise: ({"kl", "terminator"}, {"top1", *SMOKE}),
    # llama.cpp rounds activations to integers, where NaN gets lost.
    not_a_number: ({"kl", "top1", "terminator", "runtime-agreement"}, set()),
    cannot_stop: ({"tag-rows", "terminator", "smoke-stops"}, {"kl", "top1", "smoke-leaks"}),
    duplicate_token: ({"runtime"}, set()),
    tensor_renamed: ({"tensors-lost", "contract", "runtime"}, set()),
    half_a_file: ({"contract", "runtime"}, set()),
}
"""Faults, each in a file whose manifest names its new bytes; the checks that fail for it, and others that may."""


@contextmanager
def small_questions() -> Iterator[None]:
    """The trained chats in place of the built-in ones, and every tenth of the texts to tokenize."""
    chats = [Chat((*chat.messages, {"role": "assistant", "content": chat.answer})) for chat in CHATS]
    questions = [chat.messages[0]["content"] for chat in CHATS if len(chat.messages) == 1][:4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "held_out_chats", lambda: tuple(chats))
        patch.setattr(reference, "smoke_prompts", lambda: tuple(questions))
        patch.setattr(reference, "parity_strings", lambda specials, chats: parity_strings(specials, chats)[::10])
        patch.setattr(observe, "ENDS_ASKED", 1)
        yield


def planted(folder: Path, fault: Callable[[Path], None], *, signed: bool = True) -> Artifact:
    """A copy of the Q8_0 file with a fault in it, under the fault's name."""
    artifact = next(item for item in Manifest.read(folder).artifacts if item.file == Q8_0)
    path = folder / f"gguf/{fault.__name__}.gguf"
    shutil.copyfile(folder / Q8_0, path)
    fault(path)
    digest = sha256_of(path) if signed else artifact.sha256
    file = f"gguf/{path.name}"
    return replace(artifact, file=file, sha256=digest, files={file: digest})


@pytest.fixture(scope="module")
def verified(
    exported_hermes: Path, trained_hermes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, ArtifactReport]]]:
    """The export with a file for every fault beside the healthy ones, and the reports by name; 400 MB, then gone."""
    folder = tmp_path_factory.mktemp("verified") / "out"
    shutil.copytree(exported_hermes, folder)
    faulty = [planted(folder, fault) for fault in FAULTS] + [planted(folder, one_bit, signed=False)]
    other = tiny_checkpoint(folder.parent / "stranger", tokenizer="bpe", hidden=256, heads=4)
    (stranger,) = export(prepare(other, [parse("gguf:Q8_0")]), folder.parent / "strangers").artifacts
    shutil.copyfile(folder.parent / "strangers" / stranger.file, folder / stranger.file)
    manifest = Manifest.read(folder)
    replace(manifest, artifacts=(*manifest.artifacts, *faulty, stranger)).write(folder)
    with small_questions():
        reports = verify(folder, open_checkpoint(trained_hermes))
    yield folder, {Path(report.file).stem: report for report in reports}
    shutil.rmtree(folder)


def failed(report: ArtifactReport) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


@pytest.mark.parametrize("recipe", ["F32", "Q8_0", "Q4_K_M"])
def test_a_healthy_file_passes_every_check(verified: tuple[Path, dict[str, ArtifactReport]], recipe: str) -> None:
    report = verified[1][f"tiny-hermes-{recipe}"]
    assert report.passed, report.checks
    before = "bytes contract runtime tokens bos stops tensors-lost never-stops tag-rows"
    names = f"{before} kl top1 terminator runtime-agreement smoke-stops smoke-leaks"
    assert [check.name for check in report.checks] == names.split()
    figures = report.verification.figures
    assert all(math.isfinite(value) for value in figures.values())
    assert report.stops == "4/4"
    assert figures["smoke_stopped"] == 4
    assert figures["stop_rate"] == report.stop_rate == 1
    assert figures["terminator_first_source"] == figures["terminator_first_artifact"] == 1
    assert figures["perplexity_source"] == pytest.approx(figures["perplexity_artifact"], rel=0.1)
    assert figures["terminator_rank_source"] == figures["terminator_rank_artifact"] == 1
    assert figures["runtime_kl"] < 0.01
    assert figures["turn_ends"] == len(CHATS) + 1


def test_more_bits_are_nearer(verified: tuple[Path, dict[str, ArtifactReport]]) -> None:
    exact, eight, four = (verified[1][f"tiny-hermes-{recipe}"] for recipe in ("F32", "Q8_0", "Q4_K_M"))
    assert exact.kl < 1e-9 < eight.kl < four.kl
    assert exact.top1 == 1
    assert exact.terminator == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_fails_its_checks_and_no_other(
    verified: tuple[Path, dict[str, ArtifactReport]], fault: Callable[[Path], None]
) -> None:
    report = verified[1][fault.__name__]
    must, may = FAULTS[fault]
    assert must <= failed(report) <= must | may
    assert all(check.reason for check in report.checks if not check.passed)


def test_changed_bytes_are_seen_where_nothing_else_shows(verified: tuple[Path, dict[str, ArtifactReport]]) -> None:
    assert failed(verified[1]["one_bit"]) == {"bytes"}


def test_reasons_show_the_fault(verified: tuple[Path, dict[str, ArtifactReport]]) -> None:
    told = {
        name: " ".join(check.reason for check in report.checks if not check.passed)
        for name, report in verified[1].items()
    }
    assert "stop_ids: source [32000], file [2, 32000]" in told["wrong_eos"]
    assert "to nan nats" in told["not_a_number"]
    assert "turns end less readily" in told["cannot_stop"]
    assert "goes on after" in told["cannot_stop"]
    assert "<|im_end|> = 32000 in the head, Q8_0: off by 1 of its largest weight" in told["cannot_stop"]
    assert "1 of 30 tensors are not in the file: blk.2.ffn_up.weight" in told["tensor_renamed"]
    assert "source-incomplete" in told["half_a_file"]
    assert "texts differ, the shortest" in told["tokens_swapped"]


def test_every_turn_end_has_a_record_and_the_worst_come_first(verified: tuple[Path, dict[str, ArtifactReport]]) -> None:
    healthy, broken = (verified[1][name].verification for name in ("tiny-hermes-Q8_0", "cannot_stop"))
    assert len(healthy.turn_ends) == len(broken.turn_ends) == len(CHATS) + 1
    for end in healthy.turn_ends:
        assert end.source_rank == end.artifact_rank == 1
    texts = [end.text for end in healthy.turn_ends]
    for chat, text in zip(CHATS, [text for text in texts if not text.endswith("Nice to meet you, Ada.")], strict=True):
        assert text.endswith(chat.answer.encode("unicode_escape").decode()[-5:]) or text.endswith(chat.answer[-5:])
    drops = [end.drop for end in broken.most_lost]
    assert drops == sorted(drops, reverse=True)
    assert drops[-1] > 1
    assert verified[1]["cannot_stop"].first_choices[0] == len(CHATS) + 1
    assert verified[1]["cannot_stop"].first_choices[1] < len(CHATS)


def test_where_there_is_no_number_a_record_has_none(verified: tuple[Path, dict[str, ArtifactReport]]) -> None:
    ends = verified[1]["not_a_number"].verification.turn_ends
    assert {end.artifact_logprob for end in ends} == {None}
    assert all(end.source_logprob is not None and end.drop == math.inf for end in ends)


def test_another_models_file_is_no_traceback(verified: tuple[Path, dict[str, ArtifactReport]]) -> None:
    report = verified[1]["stranger-Q8_0"]
    assert failed(report) == {"contract", "runtime", "tensors-lost", "kl"}
    assert math.isnan(report.kl)


def test_nothing_that_is_no_number_passes_or_is_written(verified: tuple[Path, dict[str, ArtifactReport]]) -> None:
    report = verified[1]["not_a_number"]
    assert {check.name: check.value for check in report.checks}["kl"] == "nan"
    assert "kl_mean" not in report.verification.figures
    assert report.verification.figures["tokens"] > 100


def test_the_manifest_keeps_everything_and_no_folder_of_this_machine(
    verified: tuple[Path, dict[str, ArtifactReport]], trained_hermes: Path
) -> None:
    folder, reports = verified
    text = (folder / "hermetiq.json").read_text()
    assert str(folder) not in text
    assert str(trained_hermes.parent) not in text
    kept = Manifest.read(folder).verification
    assert kept == {report.file: report.verification for report in reports.values()}
    document = json.loads(text)["verification"][Q8_0]
    assert {"file": Q8_0, "spec": "gguf:Q8_0", "passed": True, **document} == json.loads(
        json.dumps(reports["tiny-hermes-Q8_0"].to_json())
    )
    assert document["sha256"] == sha256_of(folder / Q8_0)


@pytest.fixture
def eight_bits(exported_hermes: Path, tmp_path: Path) -> Path:
    """The Q8_0 file alone with its manifest."""
    folder = tmp_path / "out"
    (folder / "gguf").mkdir(parents=True)
    shutil.copyfile(exported_hermes / Q8_0, folder / Q8_0)
    manifest = Manifest.read(exported_hermes)
    replace(manifest, artifacts=tuple(item for item in manifest.artifacts if item.file == Q8_0)).write(folder)
    return folder


def test_verifying_twice_writes_the_same_bytes_and_max_kl_decides(eight_bits: Path, trained_hermes: Path) -> None:
    source = open_checkpoint(trained_hermes)
    heard: list[float] = []
    with small_questions():
        (first,) = verify(eight_bits, source, tick=lambda what, share: heard.append(share))
        written = (eight_bits / "hermetiq.json").read_bytes()
        (second,) = verify(eight_bits, source)
        assert (eight_bits / "hermetiq.json").read_bytes() == written
        (strict,) = verify(eight_bits, source, max_kl=first.kl / 2)
    assert first == second
    assert first.passed
    assert failed(strict) == {"kl"}
    assert heard == sorted(heard)
    assert 0 <= heard[0] < heard[-1] <= 1


def test_reader_and_writer_that_share_a_mistake_are_caught_by_the_runtime(
    eight_bits: Path, trained_hermes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = planted(eight_bits, first_and_last_block_swapped)
    replace(Manifest.read(eight_bits), artifacts=(artifact,)).write(eight_bits)
    known = gguf_source.names.gguf_names

    def mistaken(model: ModelConfig) -> dict[str, str]:
        turned = {"0": "2", "1": "1", "2": "0"}
        names = known(model).items()
        return {re.sub(r"(?<=layers\.)\d", lambda layer: turned[layer[0]], ours): theirs for ours, theirs in names}

    monkeypatch.setattr(gguf_source.names, "gguf_names", mistaken)
    with small_questions():
        (report,) = verify(eight_bits, open_checkpoint(trained_hermes))
    checks = {check.name: check.passed for check in report.checks}
    assert checks["kl"]
    assert checks["top1"]
    assert not checks["runtime-agreement"]


def test_another_source_is_refused(eight_bits: Path, trained_hermes: Path, tmp_path: Path) -> None:
    other = copy_of(trained_hermes, tmp_path / "tiny-hermes")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-6}))
    with pytest.raises(HermetiqError, match="is not the checkpoint that this export was made from"):
        verify(eight_bits, open_checkpoint(other))


def test_a_missing_file_is_unusable_input(eight_bits: Path, trained_hermes: Path) -> None:
    (eight_bits / Q8_0).unlink()
    with pytest.raises(HermetiqError, match=r"tiny-hermes-Q8_0\.gguf.*not there"):
        verify(eight_bits, open_checkpoint(trained_hermes))
