"""A base model with a LoRA on top, merged tensor by tensor as it is read.

`W + scale * B @ A` in float32 (LoRA: Hu et al. 2021, section 4.1; rank-stabilized: Kalajdzievski 2023).

A tied base needs care. peft trains its embedding and its head as two tensors, yet its own `merge_and_unload` adds a
low-rank update of one to both. Here the merged model is the one that was trained: a tied base whose embedding and
head differ after the merge is no longer tied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hermetiq.errors import Finding, Refusal
from hermetiq.model import EMBEDDING, HEAD, ModelConfig
from hermetiq.rules import finding

from . import tokenizer
from .base import Checkpoint, Provenance, TensorInfo
from .documents import incomplete, read_documents, read_provenance, read_templates
from .folder import remote_code
from .hub import is_hub_id
from .identity import folder_digest
from .lora import WEIGHTS, Adapter, read_adapter
from .shards import listed, load_tensor

_MODEL_DOCUMENTS = ("config.json", "generation_config.json")
_NOTHING = 1e-6
"""Of a weight's norm: what a merge adds below is lost when the sum is rounded, in float32 too."""
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


class AdapterCheckpoint(Checkpoint):
    """`base` with the adapter in `folder` merged in; tensors that it does not touch pass through as stored.

    A vocabulary that grew in training is taken over where the adapter holds embedding and head whole. A tokenizer in
    the adapter's folder is the one it was trained with, and replaces the base's.

    Raises:
        HermetiqError: the adapter uses something that has no exact merge here.
        Refusal: `source-incomplete`, the adapter is unreadable or does not fit the base.
    """

    def __init__(self, base: Checkpoint, folder: Path) -> None:
        shapes = {name: info.shape for name, info in base.tensors.items()}
        if base.model.tied:
            shapes.setdefault(HEAD, shapes[EMBEDDING])
        self._base, self._adapter = base, read_adapter(folder, shapes)
        self.path = base.path
        self.tensors = _merged_tensors(base, self._adapter)
        self.model = _merged_model(base.model, self.tensors, tied=self._is_tied())
        if self.model.tied and HEAD not in base.tensors:
            self.tensors = {name: info for name, info in self.tensors.items() if name != HEAD}
        self.config = {**base.config, "vocab_size": self.model.rows, "tie_word_embeddings": self.model.tied}
        overlay = _read_overlay(folder)
        kept = {
            name: base.documents[name] for name in base.documents if name in _MODEL_DOCUMENTS or not overlay.documents
        }
        self.documents = {**kept, **overlay.documents, "config.json": self.config}
        self.templates = overlay.templates or base.templates
        self.tokenizer = tokenizer.from_folder(folder, self.documents) if overlay.documents else base.tokenizer
        self.tokenizer_folder = folder if overlay.documents else base.tokenizer_folder
        self.provenance = _merged_provenance(base.provenance, overlay, self._adapter.base_model)
        self.findings = (*base.findings, *_resized(base.model, self.model), *overlay.warnings)
        self.folder = folder

    def load(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise KeyError(name)
        stored = self._adapter.replaced.get(name)
        weight = self._load_base(name) if stored is None else self._load_own(stored)
        update = self._adapter.updates.get(name)
        if update is None:
            return weight
        a, b = self._load_own(update.a).float(), self._load_own(update.b).float()
        left, right = (a.T, b.T) if update.transposed else (b, a)
        return weight.to(torch.float32, copy=True).addmm_(left, right, alpha=update.scale)

    def base_dtype(self, name: str) -> str:
        """The type in which the base stores the named tensor, whatever the merge makes of it."""
        return self._base.tensors[EMBEDDING if name == HEAD and HEAD not in self._base.tensors else name].dtype

    def unchanged(self) -> bool:
        return all(map(self._is_as_before, self._adapter.updates.keys() | self._adapter.replaced.keys()))

    def _is_as_before(self, name: str) -> bool:
        before = self._load_base(name)
        if name in self._adapter.replaced:
            return torch.equal(self.load(name).to(before.dtype), before)
        update = self._adapter.updates[name]
        a, b = self._load_own(update.a).double(), self._load_own(update.b).double()
        # The norm of B A, from two small matrices: its square is the trace of (B^T B)(A A^T).
        square = ((b.T @ b) * (a @ a.T)).sum().clamp(min=0)
        return bool(square.sqrt() * update.scale <= _NOTHING * before.float().norm())

    def fingerprint(self) -> str:
        own = folder_digest(self._adapter.folder, self._adapter.tensors, self._load_own)
        return hashlib.sha256(f"{self._base.fingerprint()} {own}".encode()).hexdigest()

    def _load_base(self, name: str) -> Tensor:
        return self._base.load(EMBEDDING if name == HEAD and HEAD not in self._base.tensors else name)

    def _load_own(self, name: str) -> Tensor:
        return load_tensor(self._adapter.folder, name, self._adapter.tensors[name])

    def _is_tied(self) -> bool:
        """Whether one tensor still serves as embedding and head."""
        changed = {EMBEDDING, HEAD} & (self._adapter.replaced.keys() | self._adapter.updates.keys())
        if not self._base.model.tied or not changed:
            return self._base.model.tied
        return torch.equal(self.load(EMBEDDING), self.load(HEAD))


def _merged_tensors(base: Checkpoint, adapter: Adapter) -> dict[str, TensorInfo]:
    """The base's tensors as they are after the merge; with a head of its own where a tied base's pair is changed."""
    tensors = dict(base.tensors)
    if base.model.tied:
        tensors.setdefault(HEAD, tensors[EMBEDDING])
    tensors |= {name: adapter.tensors[own] for name, own in adapter.replaced.items()}
    return tensors | {name: replace(tensors[name], dtype="F32") for name in adapter.updates}


def _merged_model(base: ModelConfig, tensors: Mapping[str, TensorInfo], *, tied: bool) -> ModelConfig:
    """The base's configuration with the merged embedding's rows, if all shapes agree with that."""
    model = replace(base, rows=next(iter(tensors[EMBEDDING].shape), base.rows), tied=tied)
    if apart := _apart(base, tensors):
        raise Refusal(apart)
    expected = model.expected_tensors()
    wrong = [
        f"{name} {tensors[name].shape} for {shape}" for name, shape in expected.items() if tensors[name].shape != shape
    ]
    if wrong:
        raise Refusal(
            incomplete(
                WEIGHTS,
                found=f"other shapes: {listed(wrong)}",
                expected="the shapes of the base",
                repair="Use the base that it was trained on.",
            )
        )
    return model


def _apart(base: ModelConfig, tensors: Mapping[str, TensorInfo]) -> Finding | None:
    """`adapter-vocab`, where embedding and head have different numbers of rows after the merge."""
    shapes = {name: tensors[name].shape for name in (EMBEDDING, HEAD) if name in tensors}
    if len({shape[0] for shape in shapes.values()}) == 1 or any(s[1:] != (base.hidden,) for s in shapes.values()):
        return None
    return finding(
        "adapter-vocab",
        file=WEIGHTS,
        found=", ".join(f"{name} of {shape[0]} rows" for name, shape in shapes.items()),
        expected=f"the base's {base.rows} rows, or embedding and head of one new size",
    )


def _resized(base: ModelConfig, merged: ModelConfig) -> tuple[Finding, ...]:
    """`adapter-vocab`, as information: the adapter brings rows that the base does not have, or has fewer."""
    if base.rows == merged.rows:
        return ()
    found = f"{merged.rows} rows, for a base of {base.rows}"
    expected, repair = "the base's rows", "Nothing to repair: embedding and head are the adapter's."
    return (finding("adapter-vocab", file=WEIGHTS, found=found, expected=expected, severity="info", repair=repair),)


@dataclass(frozen=True)
class _Overlay:
    """What an adapter's folder puts in the place of the base's small files."""

    documents: Mapping[str, Mapping[str, Any]]
    """The tokenizer's, if the folder has a tokenizer; else empty."""
    templates: Mapping[str, str]
    card: Provenance
    warnings: tuple[Finding, ...]


def _read_overlay(folder: Path) -> _Overlay:
    documents: Mapping[str, Mapping[str, Any]] = {}
    findings: tuple[Finding, ...] = ()
    if any((folder / name).exists() for name in _VOCABULARIES):
        every, findings = read_documents(folder)
        documents = {name: document for name, document in every.items() if name not in _MODEL_DOCUMENTS}
    templates, wrong_templates = read_templates(folder, documents)
    card, warnings = read_provenance(folder, {})
    if errors := (*findings, *remote_code(documents), *wrong_templates):
        raise Refusal(*errors)
    return _Overlay(documents, templates, card, warnings)


def _merged_provenance(base: Provenance, overlay: _Overlay, trained_on: str | None) -> Provenance:
    card = overlay.card
    # A trainer may have written a path of its own machine, which is nobody's business.
    parent = (trained_on,) if trained_on and is_hub_id(trained_on) else base.base_models
    return replace(
        base,
        name=f"{base.name}-{card.name}",
        license=card.license or base.license,
        base_models=card.base_models or parent,
        adapter=card.name,
        tokenizer=card.name if overlay.documents else None,
    )
