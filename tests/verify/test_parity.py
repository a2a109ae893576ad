"""What the runtime does with text and stops, held against the source."""

from __future__ import annotations

from dataclasses import replace

from hermetiq.verify.parity import (
    Encoding,
    check_bos,
    check_stops,
    check_tokens,
    decomposition_notes,
    inside_turns,
    template_notes,
)
from tests.verify.test_smoke import CONTRACT, END, OTHER_END, START


def test_equal_ids_pass_and_the_shortest_difference_is_shown() -> None:
    source = [Encoding("a longer text", (1, 2, 3)), Encoding("ab", (4, 5)), Encoding("c", (6,))]
    assert check_tokens(source, [[1, 2, 3], [4, 5], [6]]).passed
    check = check_tokens(source, [[1, 2, 9], [4], [6]])
    assert (check.passed, check.value) == (False, 2)
    assert check.reason == "2 of 3 texts differ, the shortest: 'ab' from token 1: source [5], llama.cpp []"


def test_bos_is_added_exactly_where_the_source_adds_it() -> None:
    adds = replace(CONTRACT, bos_token_id=1, add_bos=True)
    assert check_bos(adds, [5, 6], [1, 5, 6]).passed
    assert not check_bos(adds, [5, 6], [5, 6]).passed
    assert not check_bos(adds, [5, 6], [1, 1, 5, 6]).passed
    assert not check_bos(adds, [5, 6], [1, 5, 6, 2]).passed
    # A template that prints BOS: it is in the text, and the runtime must not add another.
    prints = replace(CONTRACT, bos_token_id=1, add_bos=False)
    assert check_bos(prints, [1, 5, 6], [1, 5, 6]).passed
    assert not check_bos(prints, [1, 5, 6], [1, 1, 5, 6]).passed


def test_stops_agree_in_both_directions() -> None:
    both = {END, OTHER_END}
    check, notes = check_stops(CONTRACT, both, inside_turns=())
    assert check.passed
    assert notes == ()
    check, _ = check_stops(CONTRACT, {OTHER_END}, inside_turns=())
    assert not check.passed
    assert check.reason == "llama.cpp does not stop on [90], where the source does"
    check, _ = check_stops(CONTRACT, {END}, inside_turns=())
    assert not check.passed
    check, notes = check_stops(CONTRACT, both | {7}, inside_turns={5, 7})
    assert not check.passed
    assert check.reason == "llama.cpp stops on [7], which occur inside answers"
    check, notes = check_stops(CONTRACT, both | {7}, inside_turns={5})
    assert check.passed
    assert notes == ("llama.cpp also stops on [7], which no held-out answer contains",)


def test_a_third_stop_that_no_file_can_name_is_a_note() -> None:
    three = replace(CONTRACT, stop_ids=(END, OTHER_END, 94))
    check, notes = check_stops(three, {END, OTHER_END}, inside_turns=())
    assert check.passed
    assert "does not stop on [94]" in notes[0]
    check, notes = check_stops(three, {END, OTHER_END, 94}, inside_turns=())
    assert check.passed
    assert notes == ()
    assert not check_stops(three, {OTHER_END, 94}, inside_turns=())[0].passed


def test_what_an_assistant_says_lies_between_a_tag_and_an_end() -> None:
    rows = [[START, 10, 11, END, START, 20, 21, END], [30, 31, END]]
    assert inside_turns(rows, [(0, 6), (1, 1)], {START, END}) == {20, 21, 30, 31}


def test_templates_and_unicode_forms_that_differ_are_notes() -> None:
    assert template_notes(["a\nb"], ["a\nb"]) == ()
    assert "-b\n+c" in template_notes(["a\nb"], ["a\nc"])[0]
    assert decomposition_notes([Encoding("e\u0301", (1,))], [[1]]) == ()
    assert "composes characters" in decomposition_notes([Encoding("e\u0301", (1,))], [[1, 2]])[0]
