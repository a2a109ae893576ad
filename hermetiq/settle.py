"""Folders that end their answers as readily as their source: the final norm's gains, settled on chats of their own.

What rounding does to the terminator is a draw: on SmolLM2 at four bits a tenth to a quarter of a nat to either side,
and a chat that is calibrated on does not show it. So the settling chats are read once with the source and once with
each folder that was made, and `quantize.ending` takes the difference out of the norm before the head. It costs nothing
at inference and changes no format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any, Final

import torch
from torch import Tensor

from hermetiq.calibration.heldout import settling_chats
from hermetiq.calibration.walk import Load, final_hidden, head_matrix
from hermetiq.chat.endings import Endings, endings
from hermetiq.checkpoint.packed import unpacked
from hermetiq.harvest import quantization, stored
from hermetiq.journal import Journal
from hermetiq.manifest import Ending
from hermetiq.model import FINAL_NORM
from hermetiq.plan import Job
from hermetiq.progress import Ticker, part
from hermetiq.quantize.ending import settle
from hermetiq.tracks import Track, sound

EXPECTED: Final = log(0.01)
"""Least log-probability that the source gives the terminator at an end which counts. Where it would not end itself,
rounding moves the figure by nats at random, and that drowns what the others have in common."""
OTHERS: Final = 1024
"""Tokens whose predictions tell what a change of the gains costs."""


@dataclass(frozen=True)
class Settlement:
    """What one folder stores in the place of the source's gains."""

    gains: Tensor  # (hidden,) in the type of the folder's norms
    ending: Ending


@dataclass(frozen=True)
class _States:
    """What a model makes of the settling chats, behind its final norm."""

    ends: Tensor  # (ends, hidden)
    others: Tensor  # (OTHERS or less, hidden), evenly spaced
    head: Tensor  # (vocabulary, hidden)


def settlements(
    job: Job, journal: Journal | None, tracks: Mapping[str, Track], device: torch.device, tick: Ticker
) -> dict[str, Settlement]:
    """The gains of each folder, by path; none where the model has no chats whose end it expects.

    Raises:
        Refusal: `weight-nan`, `f16-overflow`.
    """
    if journal is None or not tracks:
        return {}
    asked = endings(job.source, job.contract, settling_chats())
    if not asked.ends:
        return {}
    steps = [part(tick, place / (len(tracks) + 1), (place + 1) / (len(tracks) + 1)) for place in range(len(tracks) + 1)]
    expected = _expected(job, asked, device, steps[0])
    told = expected > EXPECTED
    if not told.any():
        return {}
    target = float(expected[told].mean())
    made = {}
    for step, (path, track) in zip(steps[1:], tracks.items(), strict=True):
        load = stored(job.source, track.plan, journal, path)
        names = [tensor.name for tensor in track.plan.tensors]
        # A packed head is no embedding, though the source's may be.
        config = {**job.source.config, "tie_word_embeddings": not any(name.startswith("lm_head.") for name in names)}
        logical = unpacked(quantization(job, track.plan), names, load, track.plan.model)
        states = _read(config, logical, asked, device, step)
        gains = load(FINAL_NORM).to(device)
        found = settle(gains, states.ends[told], states.others, states.head, job.contract.terminator_id, target)
        ending = Ending(int(told.sum()), target, found.before, found.after)
        made[path] = Settlement(found.gains.cpu(), ending)
    return made


def _expected(job: Job, asked: Endings, device: torch.device, tick: Ticker) -> Tensor:  # (ends,)
    """Log-probability that the source gives the terminator at each end."""
    source = _read(job.source.config, sound(job.source, narrow=True), asked, device, tick)
    return (source.ends @ source.head.T).log_softmax(-1)[:, job.contract.terminator_id]


def _read(config: Mapping[str, Any], load: Load, asked: Endings, device: torch.device, tick: Ticker) -> _States:
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
