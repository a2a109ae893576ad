"""The rule that a training left a trace: an adapter that adds nothing, and a fine-tune that is its parent again.

Both come of small changes that were rounded away, as when a LoRA is merged into a 4-bit base, or of saving the wrong
object; the model then answers as if it had never been trained (U69).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hermetiq.chat.subject import Subject
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.errors import Finding, HermetiqError, Refusal
from hermetiq.model import EMBEDDING, HEAD
from hermetiq.rules import finding

_WINDOW = 1024
_WINDOWS = 16
"""Stretches of a tensor, and their length in values: a training step that changes a tensor changes all of them."""


def no_delta(subject: Subject) -> Iterator[Finding]:
    """A merged adapter that changes nothing, and parents whose weights are the checkpoint's."""
    checkpoint = subject.checkpoint
    try:
        if checkpoint.unchanged():
            yield _nothing(f"the adapter {checkpoint.provenance.adapter} leaves every weight of its base as it is")
        for parent in subject.parents.read:
            if _equal(checkpoint, parent.open()):
                yield _nothing(f"every weight that was sampled equals that of {parent.name}")
    except Refusal as refusal:
        yield from refusal.findings
    except HermetiqError:
        # Its tokenizer alone could be read, as `merge-rows` tells.
        return


def _nothing(found: str) -> Finding:
    return finding("no-delta", file="model.safetensors", found=found, expected="weights that a training changed")


def _equal(checkpoint: Checkpoint, parent: Checkpoint) -> bool:
    """Whether all tensors of the parent are here, with its values wherever they are sampled.

    Of an embedding or head of another size the rows that both have are compared: added rows are no training.
    """
    names = parent.tensors.keys() - {HEAD}
    if not names <= checkpoint.tensors.keys():
        return False
    return all(
        _same(name, checkpoint.load(name), parent.load(name)) for name in parent.tensors if name in checkpoint.tensors
    )


def _same(name: str, own: Tensor, parents: Tensor) -> bool:
    if name in (EMBEDDING, HEAD):
        rows = min(len(own), len(parents))
        own, parents = own[:rows], parents[:rows]
    if own.shape != parents.shape:
        return False
    return torch.equal(_sample(own), _sample(parents))


def _sample(tensor: Tensor) -> Tensor:
    """Stretches from the first value to the last, in float32, so that types do not matter; of a small tensor all."""
    values = tensor.reshape(-1)
    last = values.numel() - _WINDOW
    if last <= _WINDOW * (_WINDOWS - 1):
        return values.float()
    starts = (last * i // (_WINDOWS - 1) for i in range(_WINDOWS))
    return torch.cat([values[start : start + _WINDOW].float() for start in starts])
