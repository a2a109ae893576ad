"""The rules' words: complete, of one voice, and found by name."""

from __future__ import annotations

import re

import pytest

from hermetiq.errors import HermetiqError
from hermetiq.rules import RULES, Rule, explain, finding, named


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.name)
def test_every_rule_says_what_why_and_how_to_repair(rule: Rule) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", rule.name)
    assert all(text.endswith(".") and len(text) > 15 for text in (rule.what, rule.why, rule.repair))
    assert all(re.fullmatch(r"U\d\d", case) for case in rule.cases)


@pytest.mark.parametrize("name", RULES)
def test_an_explanation_holds_the_whole_rule(name: str) -> None:
    rule, text = RULES[name], explain(name)
    assert text.startswith(f"{name} ({rule.severity})\n")
    assert all(part in text for part in (rule.what, rule.why, rule.repair, *rule.cases))


def test_an_unknown_rule_is_answered_with_the_nearest() -> None:
    with pytest.raises(HermetiqError, match=r"unknown rule 'token-splits' \(did you mean token-split"):
        explain("token-splits")
    with pytest.raises(HermetiqError, match="rules: eos-mismatch, template-missing"):
        named("zzz")


def test_a_place_may_know_better_than_the_rule() -> None:
    plain = finding("eos-mismatch", file="f", found="a", expected="b")
    assert (plain.severity, plain.repair, plain.field) == ("error", RULES["eos-mismatch"].repair, "")
    special = finding("eos-mismatch", file="f", found="a", expected="b", severity="info", repair="Do this.")
    assert (special.severity, special.repair, special.why) == ("info", "Do this.", RULES["eos-mismatch"].why)
