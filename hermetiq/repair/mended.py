"""A checkpoint with some rows of its embedding and head replaced or added, and with its tie flag set right.

Repairs of weights are this view of the source: what examines, states and writes a checkpoint does not know of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hermetiq.checkpoint.base import Checkpoint
from hermetiq.model import EMBEDDING

Rows = Mapping[str, Mapping[int, Tensor]]
"""New rows, (hidden,), by tensor and id; those behind the last stored row follow it without a gap."""


class MendedCheckpoint(Checkpoint):
    """`source` with `rows` in place of its own, and `tied` as its flag."""

    def __init__(self, source: Checkpoint, rows: Rows, *, tied: bool) -> None:
        self._source, self.rows = source, rows
        self.tensors = {
            name: replace(info, shape=(max((info.shape[0] - 1, *rows.get(name, ()))) + 1, *info.shape[1:]))
            if name in rows
            else info
            for name, info in source.tensors.items()
        }
        self.model = replace(source.model, rows=self.tensors[EMBEDDING].shape[0], tied=tied)
        self.path = source.path
        self.config = source.config
        self.documents = source.documents
        self.templates = source.templates
        self.tokenizer = source.tokenizer
        self.tokenizer_folder = source.tokenizer_folder
        self.provenance = source.provenance
        self.findings = source.findings

    def load(self, name: str) -> Tensor:
        stored = self._source.load(name)
        if name not in self.rows:
            return stored
        weight = torch.empty(self.tensors[name].shape, dtype=stored.dtype)
        weight[: len(stored)] = stored
        for index, row in self.rows[name].items():
            weight[index] = row.to(stored.dtype)
        return weight

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self._source.fingerprint()} {self.model.tied}".encode())
        for name, rows in sorted(self.rows.items()):
            for index, row in sorted(rows.items()):
                digest.update(f" {name} {index} ".encode() + row.double().numpy().tobytes())
        return digest.hexdigest()
