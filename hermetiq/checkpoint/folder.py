"""A model folder as Hugging Face tools write it, opened without trust and without reading its weights.

Everything that makes the folder unusable is found in one go and refused together, so that a user repairs once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hermetiq.errors import Finding, Refusal
from hermetiq.model import EMBEDDING, HEAD, ModelConfig
from hermetiq.rules import finding

from . import tokenizer
from .base import Checkpoint, Provenance, TensorInfo
from .documents import Read, incomplete, read_documents, read_provenance, read_templates
from .families import parse_config
from .identity import folder_digest
from .shards import INDEX, SINGLE, listed, load_tensor, read_every_file, read_tensors

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_QUANTIZER_FILES = ("quantize_config.json", "quant_config.json")
_QUANTIZED_PARTS = frozenset(
    {
        *("qweight", "qzeros", "scales", "g_idx"),  # GPTQ, AWQ
        *("q_weight", "q_scale", "q_scale_max", "q_groups", "q_invperm", "trellis"),  # EXL2, EXL3
        *("absmax", "quant_map", "nested_absmax", "quant_state", "SCB", "weight_format"),  # bitsandbytes
        *("weight_scale", "weight_scale_inv", "weight_packed", "weight_zero_point", "input_scale"),  # FP8, compressed
    }
)
"""Parts of tensor names that only quantized layouts have."""

_SETTLED: Final = ("vocab-rows", "head-tie")
"""Rules whose errors leave one reading of the folder, so that it opens and a repair can speak."""
_UNINDEXED = ("exl2",)
"""By `quant_method`: formats whose reader takes every file. Their converter copies the index of its source along."""


class FolderCheckpoint(Checkpoint):
    """`config.json`, a tokenizer and safetensors in one folder; a snapshot of the Hub's cache is one, too.

    Where `config.json` and the stored tensors disagree and only the tensors can be right, they are believed: `model`
    and `config` say what is stored, and the disagreement is an error among the findings.

    Raises:
        HermetiqError: the model is of no supported family.
        Refusal: every other error that `scan` finds.
    """

    def __init__(self, folder: Path, *, weights: bool = True) -> None:
        """Open a folder.

        Args:
            weights: they are there; without, the tensors are those that `config.json` asks for, and none can be read.
        """
        contents = read_folder(folder, weights=weights)
        errors = [each for each in contents.findings if each.severity == "error"]
        if contents.model is None or any(each.rule not in _SETTLED for each in errors):
            raise Refusal(*errors)
        self.path = folder
        self.documents = contents.documents
        self.config = {**contents.documents["config.json"], **contents.settled}
        self.model = contents.model
        self.templates = contents.templates
        self.tensors = contents.tensors
        self.provenance = contents.provenance
        self.findings = contents.findings
        self.tokenizer = tokenizer.from_folder(folder, self.documents)
        self.tokenizer_folder = folder

    def load(self, name: str) -> Tensor:
        return load_tensor(self.path, name, self.tensors[name])

    def fingerprint(self) -> str:
        return folder_digest(self.path, self.tensors, self.load)


def scan(folder: Path) -> tuple[Finding, ...]:
    """What is wrong with a model folder as files: unreadable, quantized, with code of its own, or not whole.

    Raises:
        HermetiqError: the model is of no supported family, so there is nothing to hold it against.
    """
    return read_folder(folder).findings


def remote_code(documents: Mapping[str, Mapping[str, Any]]) -> tuple[Finding, ...]:
    """`remote-code` for each document that maps classes to Python files of the checkpoint."""
    return tuple(
        finding(
            "remote-code", file=file, field="auto_map", found=repr(document["auto_map"])[:80], expected="no auto_map"
        )
        for file, document in documents.items()
        if document.get("auto_map")
    )


def quantized(
    folder: Path, documents: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, TensorInfo]
) -> tuple[Finding, ...]:
    """`source-quantized` for each sign of it: the configuration, a quantizer's own file, the stored tensors."""
    signs = list[Finding]()
    stated = documents.get("config.json", {}).get("quantization_config")
    if stated:
        method = stated.get("quant_method") if isinstance(stated, Mapping) else stated
        signs.append(_quantized("config.json", "quantization_config", repr(method)[:80]))
    signs += [_quantized(file, "", "settings of a quantizer") for file in _QUANTIZER_FILES if (folder / file).exists()]
    packed = {
        name: info
        for name, info in tensors.items()
        if info.dtype not in FLOATS or not _QUANTIZED_PARTS.isdisjoint(name.split("."))
    }
    if packed:
        found = listed(f"{name} ({info.dtype})" for name, info in packed.items())
        signs.append(_quantized(next(iter(packed.values())).file, "", found))
    return tuple(signs)


def mismatches(model: ModelConfig, tensors: Mapping[str, TensorInfo]) -> tuple[Finding, ...]:
    """`source-incomplete` for names that are missing or left over and for shapes that the configuration denies.

    Where nothing but the head is missing, the flag may as well be wrong: that is `head-tie`. A head stored beside a
    tied embedding is allowed; the rules `tie-conflict` and `head-tie` compare the two.
    """
    expected = model.expected_tensors()
    allowed = expected | {HEAD: (model.rows, model.hidden)}
    files = {info.file for info in tensors.values()}
    file = INDEX if len(files) > 1 else next(iter(files), SINGLE)
    missing = [name for name in expected if name not in tensors]
    headless = missing == [HEAD]
    surplus = [name for name in tensors if name not in allowed]
    shapes = [
        f"{name} {info.shape} for {allowed[name]}"
        for name, info in tensors.items()
        if name in allowed and info.shape != allowed[name]
    ]
    table = (
        ([] if headless else missing, "missing", "every tensor that config.json asks for"),
        (surplus, "left over", f"only tensors of a {model.family} model"),
        (shapes, "other shapes", "the shapes of config.json"),
    )
    wrong = [
        incomplete(file, found=f"{len(names)} {what}: {listed(names)}", expected=expected_there)
        for names, what, expected_there in table
        if names
    ]
    return (*wrong, *([_headless()] if headless else []))


@dataclass(frozen=True)
class Contents:
    """What is in a model folder before its weights are read, and what is wrong with it."""

    documents: Mapping[str, Mapping[str, Any]]
    templates: Mapping[str, str]
    provenance: Provenance
    tensors: Mapping[str, TensorInfo]
    model: ModelConfig | None
    settled: Mapping[str, Any]
    """Keys of `config.json` that the stored tensors deny, with what they must be."""
    findings: tuple[Finding, ...]


def read_folder(folder: Path, *, weights: bool = True) -> Contents:
    """Everything but the weights, with all findings on the way; without `weights`, none about where they are stored."""
    documents, findings = read_documents(folder)
    model, wrong_config = _read_model(folder, documents)
    templates, wrong_templates = read_templates(folder, documents)
    provenance, wrong_card = read_provenance(folder, documents)
    # Of an adapter alone every weight is missing, too, but that is not what has to be repaired.
    stored, wrong_tensors = ({}, ()) if _is_adapter(folder) or not weights else _read_stored(folder, documents)
    # Old exports keep this buffer; it follows from rope_theta.
    tensors = {name: info for name, info in stored.items() if not name.endswith("rotary_emb.inv_freq")}
    if not weights:
        tensors = _imagined(model)
    packed = quantized(folder, documents, tensors)
    findings += (*wrong_config, *remote_code(documents), *packed, *wrong_tensors)
    settled: dict[str, Any] = {}
    if model is not None and not packed and not wrong_tensors:
        # Of a quantized or broken set every name would be wrong, which tells nobody anything.
        model, settled, disputed = _settle(model, tensors)
        findings += (*disputed, *mismatches(model, tensors))
    findings += (*wrong_templates, *wrong_card)
    return Contents(documents, templates, provenance, tensors, model, settled, findings)


def _settle(
    model: ModelConfig, tensors: Mapping[str, TensorInfo]
) -> tuple[ModelConfig, dict[str, Any], tuple[Finding, ...]]:
    """The model with the rows that are stored, and tied where no head is; the keys that deny it, and their findings."""
    settled: dict[str, Any] = {}
    findings = list[Finding]()
    shapes = {tensors[name].shape for name in (EMBEDDING, HEAD) if name in tensors}
    if EMBEDDING in tensors and len(shapes) == 1 and (shape := next(iter(shapes)))[1:] == (model.hidden,):
        if shape[0] != model.rows:
            settled["vocab_size"] = shape[0]
            findings.append(_other_rows(model.rows, shape[0]))
            model = replace(model, rows=shape[0])
        if [name for name in model.expected_tensors() if name not in tensors] == [HEAD]:
            settled["tie_word_embeddings"] = True
            findings.append(_headless())
            model = replace(model, tied=True)
    return model, settled, tuple(findings)


def _read_model(
    folder: Path, documents: Mapping[str, Mapping[str, Any]]
) -> tuple[ModelConfig | None, tuple[Finding, ...]]:
    if "config.json" in documents:
        try:
            return parse_config(documents["config.json"]), ()
        except Refusal as refusal:
            return None, refusal.findings
    if (folder / "config.json").exists() or (folder / "config.json").is_symlink():
        return None, ()  # Unreadable, and found so before.
    if _is_adapter(folder):
        repair = "Open the base model and give this folder as --adapter."
        return None, (incomplete("config.json", found="a LoRA adapter alone", expected="a model", repair=repair),)
    return None, (incomplete("config.json", found="no such file", expected="the configuration of the model"),)


def _read_stored(folder: Path, documents: Mapping[str, Mapping[str, Any]]) -> Read[dict[str, TensorInfo]]:
    section = documents.get("config.json", {}).get("quantization_config")
    indexed = not isinstance(section, Mapping) or section.get("quant_method") not in _UNINDEXED
    return read_tensors(folder) if indexed else read_every_file(folder)


def _imagined(model: ModelConfig | None) -> dict[str, TensorInfo]:
    """The tensors that the configuration asks for, in no file."""
    expected = model.expected_tensors() if model else {}
    return {name: TensorInfo(shape, "BF16", "") for name, shape in expected.items()}


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").exists() and not (folder / "config.json").exists()


def _other_rows(stated: int, stored: int) -> Finding:
    return finding(
        "vocab-rows",
        file="config.json",
        field="vocab_size",
        found=f"{stated}, and {stored} rows are stored",
        expected=str(stored),
    )


def _headless() -> Finding:
    return finding(
        "head-tie",
        file="config.json",
        field="tie_word_embeddings",
        found=f"false, and no {HEAD} is stored",
        expected="true, or a head",
    )


def _quantized(file: str, field: str, found: str) -> Finding:
    return finding("source-quantized", file=file, field=field, found=found, expected="float weights")
