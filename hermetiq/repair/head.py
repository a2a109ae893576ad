"""A head that nobody stored: is it the embedding, or was it lost?

The flag of `config.json` cannot tell, as it is what is in doubt. The weights can: a model reads plain chats well
through the matrix that it was trained with, and no better than chance through any other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn.functional import cross_entropy

from hermetiq.calibration import walk
from hermetiq.calibration.heldout import held_out_chats
from hermetiq.chat.contract import ChatContract
from hermetiq.chat.scribe import Scribe
from hermetiq.checkpoint import Checkpoint

_CHATS: Final = 4
_TOKENS: Final = 128
"""Of each chat: some 500 tokens tell 3 nats from 10, and a 7B model reads them in a minute."""
_SPEAKS: Final = 0.5
"""Of the nats of guessing. Who knows only how often each token occurs has some 0.7 of them, a chat model 0.2 to 0.3."""


@dataclass(frozen=True)
class Reading:
    """How well chats are read with the embedding as head, in nats per token."""

    nats: float
    guessing: float
    """What equal chances for all rows have."""

    @property
    def is_head(self) -> bool:
        """Whether the model was trained with the embedding as its head; NaN is no proof."""
        return self.nats < _SPEAKS * self.guessing

    def __str__(self) -> str:
        return (
            f"with the embedding as head, chats are read at {self.nats:.2f} nats per token; guessing has "
            f"{self.guessing:.2f}"
        )


def read_through_embedding(checkpoint: Checkpoint, contract: ChatContract) -> Reading:
    """Read a few chats with a checkpoint whose `config` ties the head to the embedding.

    Raises:
        Refusal: a tensor cannot be read.
    """
    scribe = Scribe(contract, checkpoint.tokenizer)
    chats = [chat.messages for chat in held_out_chats()]
    # Without a template there is still what the assistant says.
    texts = scribe.render(chats) if contract.is_chat else [chat[-1]["content"] for chat in chats]
    rows = [ids for text in texts if text is not None and len(ids := scribe.encode(text)[:_TOKENS]) > 1][:_CHATS]
    states = walk.final_hidden(checkpoint.config, checkpoint.load, rows)
    logits = walk.head(checkpoint.config, checkpoint.load)
    losses = [
        cross_entropy(logits(state[:-1]), torch.tensor(ids[1:]), reduction="none")
        for state, ids in zip(states, rows, strict=True)
    ]
    nats = torch.cat(losses).mean().item() if losses else math.nan
    return Reading(nats, math.log(checkpoint.model.rows))
