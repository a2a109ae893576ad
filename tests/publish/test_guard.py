"""What never leaves the machine: the unverified, the changed, the unlisted, and secrets."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from hermetiq.errors import CheckFailed, HermetiqError
from hermetiq.manifest import Manifest, combined_sha256, sha256_of
from hermetiq.publish import prepare
from hermetiq.publish.guard import require_allowed, require_clean, unverified
from hermetiq.publish.secrets import HEAD, first_secret, redacted, secrets_in
from hermetiq.verification import Check
from tests.publish.release import SPECS, passed, provenance, small_export

pytestmark = pytest.mark.usefixtures("plain_cards")

# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "a Hugging Face token": "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567",
    "an AWS access key": "AKIA" + "IOSFODNN7EXAMPLE",
    "a private key": "-----BEGIN " + "RSA PRIVATE KEY-----",
    "a GitHub token": "ghp_" + "0123456789abcdefghijABCDEFGHIJ012345",
    "an API key": "sk-" + "proj-0123456789abcdefghijklmnopqrstuv",
    "a Google API key": "AIza" + "SyA0123456789abcdefghijklmnopqrstuv",
    "a Slack token": "xoxb-" + "123456789012-abcdefghij",
    "a password in a URL": "https://ada:" + "s3cret" + "@example.org/x",
    "a line of a .env file": "export WANDB_API_KEY=" + "0123456789abcdef",
}
HARMLESS = (
    "hf_transfer and hf_hub_download",
    "{% set eos_token = '<|im_end|>' %}",
    "eos_token=tokenizer.eos_token_id",
    "see https://example.org:8080/a@b and mailto:ada@example.org",
    "HF_TOKEN=$HF_TOKEN",
    "-----BEGIN CERTIFICATE-----",
    "task-force, risk-averse desk-bound disk-space",
)


def ready(folder: Path) -> None:
    prepare(folder, "ada/Hermes", base_model="ada/Fine")


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_told_by_its_line_and_never_repeated(kind: str, tmp_path: Path) -> None:
    secret = SECRETS[kind]
    text = f"one\ntwo\n{secret}\nfour\n".encode()
    assert [(found.kind, found.line) for found in secrets_in(text)] == [(kind, 3)]
    with pytest.raises(HermetiqError, match=r"card\.md:3: holds what looks like") as told:
        require_clean({"card.md": text})
    assert secret not in str(told.value)
    assert secret not in redacted(secret)


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_passes(text: str) -> None:
    assert secrets_in(text.encode()) == ()


@pytest.mark.parametrize("piece", [b"TOKEN", b"sk-a-", b"http://a:", b"-----BEGIN A ", b"hf_a", b"_", b"xoxb-"])
def test_no_text_makes_the_search_slow(piece: bytes) -> None:
    start = time.process_time()
    secrets_in(piece * (400_000 // len(piece)))
    assert time.process_time() - start < 2.0


def test_a_secret_across_two_blocks_is_found(tmp_path: Path) -> None:
    secret = SECRETS["a Hugging Face token"].encode()
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"\n" * 7 + b"\0" * ((1 << 22) - 20) + secret + b"\0" * 100)
    found = first_secret(path)
    assert found is not None
    assert (found.kind, found.line) == ("a Hugging Face token", 8)
    assert HEAD > 1 << 23


def test_a_secret_in_an_exported_file_stops_the_release(tmp_path: Path) -> None:
    made = small_export(tmp_path, ("awq:4bit-g64",))
    config = tmp_path / "awq-4bit-g64" / "config.json"
    config.write_text('{\n"token": "' + SECRETS["a Hugging Face token"] + '"}\n')
    files = {**made.artifacts[0].files, "awq-4bit-g64/config.json": sha256_of(config)}
    artifact = replace(made.artifacts[0], files=files, sha256=combined_sha256(files))
    replace(made, artifacts=(artifact,), verification={artifact.file: passed(artifact)}).write(tmp_path)
    with pytest.raises(HermetiqError, match=r"awq-4bit-g64/config\.json:2: holds what looks like a Hugging Face token"):
        ready(tmp_path)


@pytest.mark.parametrize("name", [".env", "train.py", "optimizer.pt", "notes.txt", "x.gguf.sh", "model.bin", ".gguf"])
def test_other_kinds_of_files_stay_at_home(name: str) -> None:
    with pytest.raises(HermetiqError, match="not a file that a release holds"):
        require_allowed(f"gptq-4bit-g64/{name}")


@pytest.mark.parametrize(
    "name", ["a-Q4_K_M-00001-of-00003.gguf", "model-00001-of-00002.safetensors", "LICENSE", "USE_POLICY.md",
             "output-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.model"],
)  # fmt: skip
def test_what_exports_write_is_allowed(name: str) -> None:
    require_allowed(f"exl2-4.0bpw/{name}")


def test_every_byte_is_hashed_again(tmp_path: Path) -> None:
    small_export(tmp_path)
    ready(tmp_path)
    path = tmp_path / "gptq-8bit-g128" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckFailed, match=r"gptq-8bit-g128/model\.safetensors: not the bytes that were exported"):
        ready(tmp_path)
    with pytest.raises(CheckFailed, match="not the bytes"):
        prepare(tmp_path, "ada/Hermes", base_model="ada/Fine", force="I know better")
    path.unlink()
    with pytest.raises(CheckFailed, match="the file is missing"):
        ready(tmp_path)


def failed(manifest: Manifest) -> Manifest:
    first = manifest.artifacts[0]
    check = Check("contract", False, "2", "32000", "it stops on another token")
    return replace(
        manifest, verification={**manifest.verification, first.file: replace(passed(first), checks=(check,))}
    )


def other_bytes(manifest: Manifest) -> Manifest:
    first = manifest.artifacts[0]
    return replace(
        manifest, verification={**manifest.verification, first.file: replace(passed(first), sha256="0" * 64)}
    )


def never(manifest: Manifest) -> Manifest:
    return replace(manifest, verification={})


@pytest.mark.parametrize(
    ("broken", "reason"),
    [(failed, "failed contract"), (other_bytes, "other bytes were verified"), (never, "never verified")],
)
def test_only_what_passed_is_published(broken: object, reason: str, tmp_path: Path) -> None:
    broken(small_export(tmp_path, SPECS[:1])).write(tmp_path)  # type: ignore[operator]
    with pytest.raises(CheckFailed, match=rf"not verified: gguf/Hermes-Q8_0\.gguf: {reason}"):
        ready(tmp_path)
    with pytest.raises(HermetiqError, match="takes a reason"):
        prepare(tmp_path, "ada/Hermes", base_model="ada/Fine", force=" ")
    job = prepare(tmp_path, "ada/Hermes", base_model="ada/Fine", force="for a bug report")
    assert job.release.forced == "for a bug report"
    assert [each.reason for each in unverified(job.release.manifest)] == [reason]


def test_a_merge_recipe_is_published_without_folders_of_this_machine(tmp_path: Path) -> None:
    recipe = "models:\n  - model: /home/ada/secret project/m1\n  - model: teknium/OpenHermes-2.5\n"
    made_of = provenance(merge_recipe=recipe.replace("secret project", "work"))
    small_export(tmp_path, SPECS[:1], made_of=made_of)
    job = prepare(tmp_path, "ada/Hermes", base_model="ada/Fine", licence_of=lambda name: None)
    published = job.release.manifest.source.provenance.merge_recipe or ""
    assert "/home" not in published
    assert "work" not in published
    assert "teknium/OpenHermes-2.5" in published
