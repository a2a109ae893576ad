"""Licences: taken from cards, or from the user, or refused; never guessed (U63)."""

from __future__ import annotations

import pytest

from hermetiq.errors import HermetiqError, Refusal
from hermetiq.publish.licence import Licence, settle

SOURCE = "org/merge"


def test_the_models_own_card_goes_before_those_of_its_parents() -> None:
    found = settle("MIT", parents={"a/a": "apache-2.0"}, merged=False, given=None, source=SOURCE)
    assert found == Licence("mit", "the card of org/merge", {"a/a": "apache-2.0"})


def test_parents_of_one_licence_give_it_and_the_user_decides_where_they_do_not() -> None:
    alike = settle(None, parents={"a/a": "mit", "b/b": "mit"}, merged=True, given=None, source=SOURCE)
    assert alike.name == "mit"
    decided = settle(None, parents={"a/a": "mit", "b/b": "gpl-3.0"}, merged=True, given="gpl-3.0", source=SOURCE)
    assert (decided.name, decided.origin) == ("gpl-3.0", "--license")


@pytest.mark.parametrize(
    ("own", "parents"),
    [
        (None, {}),
        (None, {"a/a": "mit", "b/b": None}),
        (None, {"a/a": "mit", "b/b": "apache-2.0"}),
        ("apache-2.0", {"a/a": "cc-by-nc-4.0"}),
        ("not a licence!", {}),
    ],
)
def test_nothing_is_guessed(own: str | None, parents: dict[str, str | None]) -> None:
    with pytest.raises(Refusal) as refused:
        settle(own, parents=parents, merged=True, given=None, source=SOURCE)
    assert refused.value.findings[0].rule == "licence-unknown"


def test_a_word_that_is_no_name_of_a_licence_is_refused() -> None:
    with pytest.raises(HermetiqError, match="names no licence"):
        settle("mit", parents={}, merged=False, given="$(whoami)", source=SOURCE)
