"""Which of the contract's stops a runtime has from the artifact itself, and which it must be told.

An id stops where the model ends its turn; a text also stops an answer that mentions it (U52). So ids go wherever a
runtime takes them, and a text is written only for what no id can say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hermetiq.chat.contract import ChatContract, special_ids


@dataclass(frozen=True)
class Stops:
    """The stops of a model as one runtime is told them."""

    ids: tuple[int, ...]
    """Ids by which it stops; the terminator is the first."""
    texts: tuple[str, ...]
    """Texts it must be given: plain-text stops of the prompt format, and ids that the artifact has no place for."""
    unsaid: tuple[int, ...] = ()
    """Ids that it can be told neither way: the artifact has no place, and the contract knows no text for them."""


def folder_stops(contract: ChatContract) -> Stops:
    """For runtimes that read `generation_config.json`, where every stop id stands."""
    others = [token for token in contract.stop_ids if token != contract.terminator_id]
    return Stops((contract.terminator_id, *others), contract.stop_strings)


def gguf_stops(contract: ChatContract) -> Stops:
    """For runtimes of a `.gguf`, which has three places for ids: end of sequence, of turn and of message."""
    special = special_ids(contract)
    carried = [token for token in dict.fromkeys((special.eos, special.eot, special.eom)) if token is not None]
    left = [token for token in contract.stop_ids if token not in carried]
    texts = {tag.id: tag.text for tag in contract.tags}
    spelled = [texts[token] for token in left if token in texts]
    return Stops(
        tuple(carried),
        tuple(dict.fromkeys((*contract.stop_strings, *spelled))),
        tuple(token for token in left if token not in texts),
    )


def in_words(ids: Sequence[int]) -> str:
    """Ids for a comment: `2`, or `2 and 7`."""
    *first, last = map(str, ids or ("none",))
    return f"{', '.join(first)} and {last}" if first else last
