"""The rule about tensors beside the decoder, which tools that know only the decoder drop when they save.

Layers that predict several tokens at once are the usual ones (U30): in the base model, asked for by `config.json`, and
gone from the fine-tune. Everything seems to work, until a runtime drafts with them. What a checkpoint has of such
tensors itself stops it from opening, as `source-incomplete`: no artifact could hold them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from hermetiq.chat.subject import Subject
from hermetiq.checkpoint.documents import read_documents
from hermetiq.checkpoint.shards import INDEX, listed, read_tensors
from hermetiq.errors import Finding
from hermetiq.model import EMBEDDING, FINAL_NORM, HEAD
from hermetiq.rules import finding

_CONFIG: Final = "config.json"
_PREDICTORS: Final = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
"""Keys that ask for layers behind the decoder's."""
_LAYER: Final = re.compile(r"model\.layers\.(\d{1,6})\.")
_DECODER: Final = frozenset({EMBEDDING, HEAD, FINAL_NORM})


def tensors_lost(subject: Subject) -> Iterator[Finding]:
    """Layers that the configuration asks for, and tensors of a parent, that no decoder has and that are not here."""
    checkpoint = subject.checkpoint
    for key in _PREDICTORS:
        count = checkpoint.config.get(key)
        if isinstance(count, int) and count > 0 and not _beside(checkpoint.tensors, checkpoint.config):
            found = f"{count}, and no tensors of such layers"
            yield finding("tensors-lost", file=_CONFIG, field=key, found=found, expected="their tensors, or 0")
    for parent in subject.parents.read:
        lost = [name for name in _beside_in(Path(parent.name)) if name not in checkpoint.tensors]
        if lost:
            found = f"{len(lost)} tensors of {parent.name} missing: {listed(lost)}"
            yield finding("tensors-lost", file=INDEX, found=found, expected="what the parent has beside the decoder")


def _beside_in(parent: Path) -> list[str]:
    """Of a folder; none of a `.gguf`, and none where only the tokenizer is here."""
    if not parent.is_dir():
        return []
    return _beside(read_tensors(parent)[0], read_documents(parent)[0].get(_CONFIG, {}))


def _beside(tensors: Mapping[str, object], config: Mapping[str, Any]) -> list[str]:
    """Names that are no decoder's of the depth that the configuration states."""
    depth = config.get("num_hidden_layers")
    return [name for name in tensors if name not in _DECODER and not _in_decoder(name, depth)]


def _in_decoder(name: str, depth: object) -> bool:
    # Old exports keep the buffer of the rotary embedding, which follows from the configuration.
    layer = _LAYER.match(name)
    inside = layer is not None and (not isinstance(depth, int) or int(layer[1]) < depth)
    return inside or name.endswith("rotary_emb.inv_freq")
