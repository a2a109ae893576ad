"""A release to publish that takes no model: an export's manifest over a few small files, all of them verified."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from hermetiq.chat.contract import ChatContract, Tag
from hermetiq.chat.eos import EosSource
from hermetiq.checkpoint.base import Provenance
from hermetiq.manifest import Artifact, Manifest, Source, StoredFile, combined_sha256, sha256_of
from hermetiq.verification import Check, Verification

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECS = ("gguf:Q8_0", "gguf:Q4_K_M", "gptq:4bit-g64", "gptq:8bit-g128", "awq:4bit-g64", "exl2:4.65bpw", "exl2:3.0bpw")


def contract() -> ChatContract:
    return ChatContract(
        template=TEMPLATE,
        terminator="<|im_end|>",
        terminator_id=32000,
        stop_ids=(2, 32000),
        tags=(Tag("<|im_end|>", 32000), Tag("<|im_start|>", 32001)),
        bos_token_id=1,
        add_bos=True,
        pad_token_id=None,
        unk_token_id=0,
        tokens=32002,
        rows=32002,
        eos_sources=(EosSource("generation_config.json", "eos_token_id", "[32000, 2]", (32000, 2)),),
        prompt_format="chatml",
        stop_strings=(),
    )


def provenance(**changes: object) -> Provenance:
    stated = {"name": "Hermes", "license": "apache-2.0", "base_models": ("mistralai/Mistral-7B-v0.1",)}
    return Provenance(**{**stated, **changes})  # type: ignore[arg-type]


def small_export(
    folder: Path, specs: Sequence[str] = SPECS, *, made_of: Provenance | None = None, seed: int = 0
) -> Manifest:
    """Write an export with `specs` into `folder`; its weights are bytes drawn by `seed`."""
    artifacts = tuple(_artifact(folder, spec, seed) for spec in specs)
    measured = None
    if any(spec.startswith("exl2") for spec in specs):
        path = folder / "measurement.json"
        path.write_text('{"version": 1}\n')
        measured = StoredFile(path.name, sha256_of(path))
    manifest = Manifest(
        source=Source("Hermes", "f" * 64, made_of or provenance(), contract()),
        artifacts=artifacts,
        measurement=measured,
        verification={each.file: passed(each) for each in artifacts},
    )
    manifest.write(folder)
    return manifest


def passed(artifact: Artifact) -> Verification:
    figures = {
        "kl_mean": 0.0123,
        "top1_agreement": 0.987,
        "terminator_logprob_artifact": -0.02,
        "terminator_logprob_source": -0.01,
        "smoke_agreed": 12.0,
        "smoke_prompts": 12.0,
    }
    return Verification(artifact.sha256, (Check("contract", True, "same", "same"),), figures)


def _artifact(folder: Path, spec: str, seed: int) -> Artifact:
    format, _, recipe = spec.partition(":")
    file = f"gguf/Hermes-{recipe}.gguf" if format == "gguf" else f"{format}-{recipe}"
    weights = hashlib.shake_256(f"{spec} {seed}".encode()).digest(3000)
    contents = {file: weights}
    if format != "gguf":
        contents = {
            f"{file}/model.safetensors": weights,
            f"{file}/config.json": f'{{"recipe": "{recipe}"}}\n'.encode(),
            f"{file}/LICENSE": b"Apache License\n",
        }
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    files = {name: sha256_of(folder / name) for name in contents}
    size = sum(map(len, contents.values()))
    return Artifact(spec, file, combined_sha256(files), files, size, bpw=4.5, nominal_bpw=4.5)
