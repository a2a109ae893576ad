"""A checkpoint as a repair leaves it: other rows, another tie flag, other small files.

Repairs are this view of the source: what examines, states, quantizes and writes a checkpoint does not know of them, so
an export of a repaired model needs no copy of its weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hermetiq.checkpoint import tokenizer
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.checkpoint.documents import DOCUMENTS, TEMPLATE, templates_of
from hermetiq.model import EMBEDDING

Rows = Mapping[str, Mapping[int, Tensor]]
"""New rows, (hidden,), by tensor and id; those behind the last stored row follow it without a gap."""


class MendedCheckpoint(Checkpoint):
    """`source` with `rows` in place of its own, `tied` as its flag, `files` as its small files, and `template`.

    Args:
        files: every small file, `config.json` and `tokenizer.json` among them; the source's own where None.
        template: the chat template, whatever the files hold; theirs where None.

    Raises:
        Refusal: the files make no tokenizer.
    """

    def __init__(
        self,
        source: Checkpoint,
        rows: Rows,
        *,
        tied: bool,
        files: Mapping[str, bytes] | None = None,
        template: str | None = None,
    ) -> None:
        self.source, self.rows = source, rows
        self.tensors = {
            name: replace(info, shape=(max((info.shape[0] - 1, *rows.get(name, ()))) + 1, *info.shape[1:]))
            if name in rows
            else info
            for name, info in source.tensors.items()
        }
        self.model = replace(source.model, rows=self.tensors[EMBEDDING].shape[0], tied=tied)
        self.path = source.path
        self.provenance = source.provenance
        self.files = source.files if files is None else files
        self.tokenizer_folder = source.tokenizer_folder
        if files is None:
            self.documents, self.templates = source.documents, source.templates
            self.tokenizer = source.tokenizer
            stated = source.config
        else:
            self.documents = {name: json.loads(files[name]) for name in DOCUMENTS if name in files}
            stored = files.get(TEMPLATE)
            self.templates, _ = templates_of(None if stored is None else stored.decode(), self.documents)
            self.tokenizer = tokenizer.from_file(files["tokenizer.json"], self.documents)
            stated = self.documents["config.json"]
        self._given = {} if template is None else {TEMPLATE: template.encode()}
        if template is not None:
            self.templates = {TEMPLATE: template}
        self.config = {**stated, "vocab_size": self.model.rows, "tie_word_embeddings": tied}
        # An error that opening found has been mended, or the repair has refused.
        self.findings = tuple(item for item in source.findings if item.severity != "error")

    def load(self, name: str) -> Tensor:
        stored = self.source.load(name)
        if name not in self.rows:
            return stored
        weight = torch.empty(self.tensors[name].shape, dtype=stored.dtype)
        weight[: len(stored)] = stored
        for index, row in self.rows[name].items():
            weight[index] = row.to(stored.dtype)
        return weight

    def unchanged(self) -> bool:
        return self.source.unchanged()

    def fingerprint(self) -> str:
        """Of the source and of all that is mended."""
        digest = hashlib.sha256(f"{self.source.fingerprint()} {self.model.tied}".encode())
        for file, content in sorted({**(self.files or {}), **self._given}.items()):
            digest.update(f" {file} {len(content)} ".encode() + content)
        for name, rows in sorted(self.rows.items()):
            for index, row in sorted(rows.items()):
                digest.update(f" {name} {index} ".encode() + row.double().numpy().tobytes())
        return digest.hexdigest()
