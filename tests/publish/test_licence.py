"""The licence is read, and never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermetiq.checkpoint.base import Provenance
from hermetiq.errors import HermetiqError, Refusal
from hermetiq.publish import Hub, prepare
from hermetiq.publish.licence import Licence, settle
from tests.publish.hub_server import HubServer
from tests.publish.release import SPECS, provenance, small_export

MIT, NC = "mit", "cc-by-nc-4.0"


def found(
    own: str | None, parents: dict[str, str | None], *, merged: bool = False, given: str | None = None
) -> Licence:
    return settle(own, parents=parents, merged=merged, given=given, source="Lelantos")


def test_the_models_own_card_goes_first() -> None:
    assert found("Apache-2.0", {"a/b": MIT}).name == "apache-2.0"


def test_a_parent_stands_in_where_the_model_states_none() -> None:
    assert found(None, {"a/b": NC}).name == NC
    assert found(None, {"a/b": MIT, "c/d": MIT}, merged=True).name == MIT


@pytest.mark.parametrize(
    ("own", "parents", "merged"),
    [
        (None, {}, False),
        (None, {"a/b": None}, False),
        (None, {"a/b": MIT, "c/d": None}, True),
        (None, {"a/b": MIT, "c/d": "apache-2.0"}, True),
        ("apache-2.0", {"a/b": MIT, "c/d": NC}, True),
        ("no name at all!", {}, False),
    ],
)
def test_what_is_not_known_is_refused(own: str | None, parents: dict[str, str | None], merged: bool) -> None:
    with pytest.raises(Refusal, match="licence-unknown"):
        found(own, parents, merged=merged)
    assert found(own, parents, merged=merged, given=NC).name == NC


def test_a_licence_that_forbids_trade_survives_a_merge() -> None:
    assert found(NC, {"a/b": MIT, "c/d": NC}, merged=True) == Licence(
        NC, "the card of Lelantos", {"a/b": MIT, "c/d": NC}
    )


@pytest.mark.parametrize("given", ["", "Apache 2.0", "a\nb", "x" * 80])
def test_what_names_no_licence_is_an_error(given: str) -> None:
    with pytest.raises(HermetiqError, match="names no licence"):
        found(MIT, {}, given=given)


@pytest.mark.usefixtures("plain_cards")
@pytest.mark.parametrize(
    ("made_of", "licence"),
    [
        (provenance(license=None), "mit"),
        (provenance(license=None, base_models=(), merge_recipe="models:\n- model: b/nc\n"), NC),
        (provenance(license=None, merge_recipe="models:\n- model: b/nc\n"), ""),
    ],
)  # fmt: skip
def test_the_hub_is_asked_about_parents(
    made_of: Provenance, licence: str, tmp_path: Path, server: HubServer, hub: Hub
) -> None:
    server.licences = {"mistralai/Mistral-7B-v0.1": MIT, "b/nc": NC}
    small_export(tmp_path, SPECS[:1], made_of=made_of)

    def ready() -> str:
        return prepare(tmp_path, "ada/H", base_model="ada/Fine", licence_of=hub.licence).release.licence.name

    if licence:
        assert ready() == licence
    else:
        with pytest.raises(Refusal, match="licence-unknown"):
            ready()
