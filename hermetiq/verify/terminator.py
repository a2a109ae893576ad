"""The terminator where turns end: one record for each place, and whether the source itself can stop at all.

A mean over all turn ends hides the one kind of answer (a list, a code block, a single word) after which a quantized
model no longer stops. And a source that never learned to stop gives an artifact that does not either, which no
quantizer caused and none repairs (U40): that is a finding about the source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Final

from hermetiq.chat.contract import ChatContract
from hermetiq.verification import LONGEST_TEXT, Check, TurnEnd

from .fidelity import Fidelity, Readiness
from .judge import Findings, finite, number
from .reference import Reference

NEVER_STOPS: Final = "never-stops"
CHOICES: Final = 40
"""Tokens that samplers choose among by default (`top_k` of llama.cpp and of what is built on it): one that ranks behind
them is never said, whatever its probability."""
_TOKENS_SHOWN: Final = 48
"""Decoded for the text of a turn end: more than its characters hold in any script but byte by byte."""

Decode = Callable[[Sequence[int]], str]
"""Text of ids, by the source's tokenizer."""


def turn_end_findings(measured: Fidelity, asked: Reference, decode: Decode) -> Findings:
    """A record for every turn end, and how often the terminator is the first choice there."""
    pairs = zip(measured.source_ends, measured.artifact_ends, strict=True)
    ends = tuple(_record(before, after, asked, decode) for before, after in pairs)
    figures = {
        "terminator_first_source": fmean(end.source_rank == 1 for end in ends),
        "terminator_first_artifact": fmean(end.artifact_rank == 1 for end in ends),
    }
    return Findings(figures=finite(figures), turn_ends=ends)


def never_stops(source: Sequence[Readiness], contract: ChatContract) -> str:
    """What is wrong with a source whose terminator is none of its choices at most turn ends; empty if it can stop.

    Args:
        source: its readiness at every turn end of the held-out chats; at least one.
    """
    middle = median(end.rank for end in source)
    if middle <= CHOICES:
        return ""
    mean = fmean(end.logprob for end in source)
    found = (
        f"{contract.terminator} = {contract.terminator_id} of median rank {middle:.0f} and mean log-probability "
        f"{mean:.2f} nats where {len(source)} turns end"
    )
    # Trainers mask padding out of the loss, and every terminator with it.
    padded = contract.pad_token_id == contract.terminator_id
    return f"{found}; it is the padding token as well" if padded else found


def source_check(source: Sequence[Readiness], contract: ChatContract) -> Check:
    """`never-stops` of the source, as every artifact of it is told."""
    found = never_stops(source, contract)
    reason = f"the source itself does not stop, a fault of its training and not of this file: {found}" if found else ""
    return Check(NEVER_STOPS, not found, median(end.rank for end in source), CHOICES, reason)


def _record(before: Readiness, after: Readiness, asked: Reference, decode: Decode) -> TurnEnd:
    read = asked.rows[before.row][: before.position + 1]
    return TurnEnd(
        chat=before.row,
        position=before.position,
        text=_shown(decode(read[-_TOKENS_SHOWN:])),
        source_logprob=number(before.logprob),
        source_rank=before.rank,
        artifact_logprob=number(after.logprob),
        artifact_rank=after.rank,
    )


def _shown(text: str) -> str:
    """The end of a text in one line, no character spelled out by half."""
    shown = ""
    for character in reversed(text):
        spelled = character if character.isprintable() else character.encode("unicode_escape").decode()
        if len(spelled) + len(shown) > LONGEST_TEXT:
            break
        shown = spelled + shown
    # The first token may be the last bytes of a character.
    return shown.lstrip("\N{REPLACEMENT CHARACTER}")
