"""Artifacts that end their answers as readily as their source: the final norm's gains, settled on chats of their own.

What rounding does to the terminator is a draw: on SmolLM2 at four bits a tenth to over half a nat to either side, and a
chat that is calibrated on does not show it. So the settling chats are read once with the source and once with each
artifact that was made, and `quantize.ending` takes the difference out of the norm before the head. It costs nothing at
inference and changes no format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import Tensor

from hermetiq.calibration.heldout import settling_chats
from hermetiq.calibration.walk import Load, final_hidden, head_matrix
from hermetiq.chat.conversations import Conversations, conversations
from hermetiq.checkpoint.gguf_source import GgufCheckpoint
from hermetiq.checkpoint.packed import unpacked
from hermetiq.formats.linear_plan import LinearPlan
from hermetiq.harvest import quantization, stored
from hermetiq.journal import Journal
from hermetiq.manifest import Ending
from hermetiq.model import FINAL_NORM
from hermetiq.plan import Job
from hermetiq.progress import Ticker, shares
from hermetiq.quantize.ending import settle
from hermetiq.tracks import Track, sound

EXPECTED: Final = log(0.01)
"""Least log-probability that the source gives the terminator at an end which counts. Where it would not end itself,
rounding moves the figure by nats at random, and that drowns what the others have in common."""
OTHERS: Final = 1024
"""Tokens whose predictions tell what a change of the gains costs."""


@dataclass(frozen=True)
class Settlement:
    """What one artifact stores in the place of the source's gains."""

    gains: Tensor  # (hidden,) in the type of the artifact's norms
    ending: Ending


@dataclass(frozen=True)
class Settler:
    """What the source makes of the settling chats, and what every artifact is held to."""

    job: Job
    device: torch.device
    asked: Conversations
    counts: Tensor  # (ends,) bool: the source expects this end
    mean: float
    """Log-probability of the terminator at those ends, in nats."""

    @classmethod
    def of(cls, job: Job, device: torch.device, tick: Ticker) -> Self | None:
        """Read the settling chats with the source; None where nothing is to be settled, or it expects no end of theirs.

        Raises:
            Refusal: `weight-nan`, `f16-overflow`.
        """
        if not job.settles:
            return None
        asked = conversations(job.source, job.contract, settling_chats())
        if not asked.ends:
            return None
        # As the walk read it: only folders must fit into float16.
        load = sound(job.source, narrow=bool(job.folders))
        source = _read(job.source.config, load, asked, device, tick)
        expected = (source.ends @ source.head.T).log_softmax(-1)[:, job.contract.terminator_id]
        counts = expected > EXPECTED
        return cls(job, device, asked, counts, float(expected[counts].mean())) if counts.any() else None

    def folders(self, journal: Journal, tracks: Mapping[str, Track], tick: Ticker) -> dict[str, Settlement]:
        """Settle every folder whose tensors lie in the journal, by path."""
        steps = shares(tick, len(tracks))
        return {
            path: self._folder(track.plan, journal, path, step)
            for step, (path, track) in zip(steps, tracks.items(), strict=True)
        }

    def file(self, path: Path, tick: Ticker) -> Settlement:
        """Settle a GGUF file, read as it lies on disk."""
        found = GgufCheckpoint(path)
        return self._settled(found.config, found.load, found.load(FINAL_NORM), tick)

    def _folder(self, plan: LinearPlan, journal: Journal, path: str, tick: Ticker) -> Settlement:
        load = stored(self.job.source, plan, journal, path)
        names = [tensor.name for tensor in plan.tensors]
        # A packed head is no embedding, though the source's may be.
        tied = not any(name.startswith("lm_head.") for name in names)
        config = {**self.job.source.config, "tie_word_embeddings": tied}
        logical = unpacked(quantization(self.job, plan), names, load, plan.model)
        return self._settled(config, logical, load(FINAL_NORM), tick)

    def _settled(
        self,
        config: Mapping[str, Any],
        load: Load,
        gains: Tensor,  # (hidden,)
        tick: Ticker,
    ) -> Settlement:
        states = _read(config, load, self.asked, self.device, tick)
        terminator = self.job.contract.terminator_id
        found = settle(
            gains.to(self.device), states.ends[self.counts], states.others, states.head, terminator, self.mean
        )
        return Settlement(found.gains.cpu(), Ending(int(self.counts.sum()), self.mean, found.before, found.after))


@dataclass(frozen=True)
class _States:
    """What a model makes of the settling chats, behind its final norm."""

    ends: Tensor  # (ends, hidden)
    others: Tensor  # (OTHERS or less, hidden), evenly spaced
    head: Tensor  # (vocabulary, hidden)


def _read(config: Mapping[str, Any], load: Load, asked: Conversations, device: torch.device, tick: Ticker) -> _States:
    hidden = final_hidden(
        config,
        load,
        asked.rows,
        device=device,
        precision="auto",
        on_block=lambda done, of: tick(f"settling the terminator, block {done} of {of}", done / of),
    )
    tokens = torch.cat(hidden)
    return _States(
        ends=torch.stack([hidden[row][place] for row, place in asked.ends]),
        others=tokens[:: -(-len(tokens) // OTHERS)],
        head=head_matrix(config, load).to(device, torch.float32),
    )
