"""Under which licence a release comes: read from the models it is made of, and never guessed (U63).

The licence stands on model cards, not in `config.json`, and tools that default to one give away what is not theirs.
A merge has the licences of all its parents: where they differ somebody has to decide, and it is not this program.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from hermetiq.errors import HermetiqError, Refusal
from hermetiq.rules import finding

_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_RESTRICTIONS = {"non-commercial": re.compile(r"(^|-)nc(-|$)|noncommercial|non-commercial")}


@dataclass(frozen=True)
class Licence:
    """What the card states: the licence's name as the Hub spells it, and where it was read."""

    name: str
    origin: str
    parents: Mapping[str, str] = field(default_factory=dict)
    """Licence of each parent of a merge that states one."""


def settle(
    own: str | None, *, parents: Mapping[str, str | None], merged: bool, given: str | None, source: str
) -> Licence:
    """The licence of a release.

    Args:
        own: what the model's own card states.
        parents: what the cards of the models it was made from state, by their ids; None where nothing is known.
        merged: whether those parents were merged, so that all of their licences hold.
        given: `--license`: the user's word, which goes before everything.
        source: name of the model, for the message.

    Raises:
        Refusal: `licence-unknown`, no licence is stated, or those of a merge contradict each other.
        HermetiqError: `given` is no name of a licence.
    """
    if given is not None and not _NAME.fullmatch(given):
        raise HermetiqError(f"{given!r} names no licence", where="--license", remedy="as the Hub spells it: apache-2.0")
    stated = {parent: name.lower() for parent, name in parents.items() if name and _NAME.fullmatch(name.lower())}
    if given is not None:
        return Licence(given, "--license", stated)
    if own is not None and _NAME.fullmatch(own.lower()):
        name = own.lower()
        if merged:
            _require_as_strict(name, stated, source)
        return Licence(name, f"the card of {source}", stated)
    names = set(stated.values())
    if stated and len(names) == 1 and len(stated) == len(parents):
        return Licence(names.pop(), f"the cards of {', '.join(stated)}", stated)
    known = ", ".join(f"{parent}: {name or 'unknown'}" for parent, name in parents.items())
    raise _unknown(source, f"none on its card; of its parents: {known}" if known else "none on its card")


def _require_as_strict(name: str, parents: Mapping[str, str], source: str) -> None:
    for what, pattern in _RESTRICTIONS.items():
        strict = [parent for parent, licence in parents.items() if pattern.search(licence)]
        if strict and not pattern.search(name):
            raise _unknown(source, f"{name} on its card, and its parent {strict[0]} is {what} ({parents[strict[0]]})")


def _unknown(source: str, found: str) -> Refusal:
    return Refusal(
        finding("licence-unknown", file=source, field="license", found=found, expected="one licence that holds")
    )
