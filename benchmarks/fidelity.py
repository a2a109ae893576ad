"""How far artifacts are from their source: `python -m benchmarks.fidelity SOURCE NAME=ARTIFACT …` prints JSON lines.

Whoever made it, an artifact is read by hermetiq's own reader in float32, so only weights differ. KL per token is over
the held-out chats. They have some 120 answers, too few to follow the terminator; the same exchanges are therefore read
a second time, shuffled and grouped by three into other conversations, where each answer ends after another past.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Final

from hermetiq.calibration.corpus import Chat
from hermetiq.calibration.heldout import held_out_chats
from hermetiq.chat.contract import derive
from hermetiq.chat.conversations import conversations
from hermetiq.checkpoint import Checkpoint, open_checkpoint
from hermetiq.verify import fidelity
from hermetiq.verify.reading import Reading, read_rows

SEED: Final = 0
EXCHANGES: Final = 3
"""Question and answer pairs in a regrouped conversation."""


@dataclasses.dataclass(frozen=True)
class Yardstick:
    """What every model reads, as the source's template and tokenizer write it."""

    rows: tuple[tuple[int, ...], ...]
    chats: int
    """Rows that are held-out chats; those after them are regrouped."""
    ends: tuple[tuple[int, int], ...]
    """(row, position of the last token before the terminator) of every answer."""
    terminator: int


@dataclasses.dataclass(frozen=True)
class Figures:
    """One artifact against its source; KL and log-probabilities in nats."""

    kl: float
    perplexity: float
    top1: float
    terminator: float
    """Mean log-probability where an answer ends."""
    terminator_source: float
    tokens: int
    """Over which KL, perplexity and top-1 agreement are taken."""
    ends: int


def yardstick(source: Checkpoint) -> Yardstick:
    """The rows of a model."""
    contract = derive(source)
    held_out = held_out_chats()
    asked = conversations(source, contract, (*held_out, *regrouped(held_out)))
    return Yardstick(asked.rows, len(held_out), asked.ends, contract.terminator_id)


def regrouped(chats: Sequence[Chat]) -> list[Chat]:
    """Every exchange of the chats once more, each beside strangers."""
    exchanges = [
        chat.messages[place - 1 : place + 1]
        for chat in chats
        for place, message in enumerate(chat.messages)
        if message["role"] == "assistant"
    ]
    random.Random(SEED).shuffle(exchanges)
    groups = [exchanges[start : start + EXCHANGES] for start in range(0, len(exchanges), EXCHANGES)]
    return [Chat(tuple(message for exchange in group for message in exchange)) for group in groups]


def figures(asked: Yardstick, source: Reading, artifact: Reading) -> Figures:
    """Compare two models that have read the yardstick."""
    before, after = (list(zip(asked.rows, reading.states, strict=True)) for reading in (source, artifact))
    found = fidelity.compare(
        before[: asked.chats],
        after[: asked.chats],
        source_logits=source.logits,
        artifact_logits=artifact.logits,
        ends=[],
        terminator=asked.terminator,
    )
    ends = [
        fmean(end.logprob for end in fidelity.turn_ends_of(rows, reading.logits, asked.ends, asked.terminator))
        for rows, reading in ((before, source), (after, artifact))
    ]
    return Figures(
        kl=found.kl_mean,
        perplexity=found.perplexity_artifact,
        top1=found.top1_agreement,
        terminator=ends[1],
        terminator_source=ends[0],
        tokens=found.tokens,
        ends=len(asked.ends),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("artifact", nargs="+", metavar="NAME=ARTIFACT")
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.source)
    asked = yardstick(checkpoint)
    source = read_rows(checkpoint, asked.rows)
    for named in options.artifact:
        name, _, path = named.partition("=")
        found = figures(asked, source, read_rows(open_checkpoint(path), asked.rows))
        print(json.dumps({"name": name, **dataclasses.asdict(found)}), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
