"""Does the runtime cut text into the tokens that the model was trained on, and stop on the right ones?

The contract read back by our own reader says what the file states. llama.cpp adds rules of its own: it cuts text with
the pre-tokenizer it believes in, types tokens by their text, and puts further ids into its end-of-generation set. So it
is asked, and its answers are held against the source's tokenizer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import unified_diff

from hermetiq.chat.contract import ChatContract, special_ids
from hermetiq.verification import Check

LLAMA_CPP = "llama.cpp"
SHOWN = 12
"""Ids shown around the first difference of two encodings."""


@dataclass(frozen=True)
class Encoding:
    """One text and its ids."""

    text: str
    ids: tuple[int, ...]


def check_tokens(source: Sequence[Encoding], runtime: Sequence[Sequence[int]], *, reader: str = LLAMA_CPP) -> Check:
    """Every text has the same ids in both; the reason shows the first that has not."""
    differing = [
        (mine, tuple(theirs)) for mine, theirs in zip(source, runtime, strict=True) if mine.ids != tuple(theirs)
    ]
    reason = ""
    if differing:
        mine, theirs = min(differing, key=lambda pair: len(pair[0].text))
        reason = (
            f"{len(differing)} of {len(source)} texts differ, the shortest: {first_difference(mine, theirs, reader)}"
        )
    return Check("tokens", not differing, value=len(differing), limit=0, reason=reason)


def first_difference(source: Encoding, runtime: Sequence[int], reader: str = LLAMA_CPP) -> str:
    """The text with both encodings, from where they part; `reader` is the runtime's name."""
    pairs = zip(source.ids, runtime, strict=False)
    start = next((index for index, (mine, theirs) in enumerate(pairs) if mine != theirs), len(source.ids))
    start = min(start, len(runtime))
    text = source.text if len(source.text) <= 80 else source.text[:80] + "…"
    stretch = slice(start, start + SHOWN)
    return f"{text!r} from token {start}: source {list(source.ids[stretch])}, {reader} {list(runtime[stretch])}"


def check_bos(
    contract: ChatContract, plain: Sequence[int], special: Sequence[int], *, reader: str = LLAMA_CPP
) -> Check:
    """A prompt gets BOS in the runtime exactly where it gets it in the source.

    Args:
        plain, special: the runtime's ids of one text without and with what it adds by the file's policy.
    """
    wanted = [contract.bos_token_id] if contract.add_bos else []
    matches = list(special) == [*wanted, *plain]
    reason = "" if matches else f"the source begins a chat with {wanted}, {reader} makes {special} of {plain}"
    return Check(
        "bos", matches, value=str(list(special[: len(special) - len(plain)])), limit=str(wanted), reason=reason
    )


def check_stops(
    contract: ChatContract, runtime: Collection[int], *, inside_turns: Collection[int]
) -> tuple[Check, tuple[str, ...]]:
    """The runtime ends its turn on the stops of the source, and on nothing that an assistant says (U02, U76).

    A file names the terminator and one more stop (`special_ids`); those must be in the runtime's set. Whether it knows
    the rest of a longer list by their texts is up to the runtime.

    Args:
        inside_turns: ids that occur inside assistant turns of held-out chats, terminators excluded.

    Returns:
        The check, and notes on stops that only one of the two has, and that do no harm.
    """
    named = special_ids(contract)
    missing = sorted({token for token in (named.eos, named.eot, named.eom) if token is not None} - set(runtime))
    unknown = sorted(set(contract.stop_ids) - set(runtime) - set(missing))
    extra = sorted(set(runtime) - set(contract.stop_ids))
    harmful = [token for token in extra if token in inside_turns]
    reasons = []
    if missing:
        reasons.append(f"llama.cpp does not stop on {missing}, where the source does")
    if harmful:
        reasons.append(f"llama.cpp stops on {harmful}, which occur inside answers")
    harmless = [token for token in extra if token not in inside_turns]
    notes = []
    if harmless:
        notes.append(f"llama.cpp also stops on {harmless}, which no held-out answer contains")
    if unknown:
        notes.append(f"llama.cpp does not stop on {unknown}, further stops that the format has no place for")
    check = Check(
        "stops", not reasons, value=str(sorted(runtime)), limit=str(list(contract.stop_ids)), reason="; ".join(reasons)
    )
    return check, tuple(notes)


def inside_turns(
    rows: Sequence[Sequence[int]], ends: Sequence[tuple[int, int]], tags: Collection[int]
) -> frozenset[int]:
    """Ids inside assistant turns: from each end, (row, last position before the terminator), back to the tag before."""
    found: set[int] = set()
    for row, end in ends:
        position = end
        while position >= 0 and rows[row][position] not in tags:
            found.add(rows[row][position])
            position -= 1
    return frozenset(found)


def template_notes(source: Sequence[str], runtime: Sequence[str]) -> tuple[str, ...]:
    """A note when llama.cpp's Jinja engine prints another prompt than the source's template does (U51)."""
    for mine, theirs in zip(source, runtime, strict=True):
        if mine != theirs:
            lines = unified_diff(mine.splitlines(), theirs.splitlines(), "source", "llama.cpp", n=0, lineterm="")
            return ("llama.cpp renders the chat template differently:\n" + "\n".join(lines),)
    return ()


def decomposition_notes(source: Sequence[Encoding], runtime: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """A note when texts in decomposed form get other tokens: llama.cpp has no Unicode normalisation to export to."""
    for mine, theirs in zip(source, runtime, strict=True):
        if mine.ids != tuple(theirs):
            return (
                "the source's tokenizer composes characters (NFC) and llama.cpp cannot: send it composed text; "
                + first_difference(mine, theirs),
            )
    return ()
