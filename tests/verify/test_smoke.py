"""Stops and leaks along an answer."""

from __future__ import annotations

import torch

from hermetiq.chat.contract import ChatContract, Tag
from hermetiq.runtimes.llama_cpp import Generation
from hermetiq.verify.smoke import Answer, leak, stop_fault, stop_leads

END, OTHER_END, START, THINK = 90, 91, 92, 93
CONTRACT = ChatContract(
    template="",
    terminator="<|im_end|>",
    terminator_id=END,
    stop_ids=(END, OTHER_END),
    tags=(Tag("<|im_end|>", END), Tag("<|im_start|>", START), Tag("<think>", THINK)),
    bos_token_id=None,
    add_bos=False,
    pad_token_id=None,
    unk_token_id=None,
    tokens=94,
    rows=96,
    eos_sources=(),
    prompt_format="chatml",
    stop_strings=(),
)
MARGIN = 0.5


def answer(*ids: int, stopped: bool = True) -> Answer:
    return Answer("Hi", (1, 2), Generation(ids, "", stopped))


def test_the_source_reads_everything_but_the_last_token() -> None:
    assert answer(5, 6, END).ids == (1, 2, 5, 6)


def test_a_lead_is_the_best_stop_less_the_best_other_token() -> None:
    table = torch.tensor([[0.0, 3.0, 1.0, 2.5], [4.0, -1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    assert stop_leads(table, (1, 3)).tolist() == [2.0, -4.0, 0.0]
    assert table[0].tolist() == [0.0, 3.0, 1.0, 2.5]


def test_an_answer_that_ends_where_the_source_ends_has_no_fault() -> None:
    assert stop_fault(answer(5, 6, END), [-3.0, -2.0, 4.0], margin=MARGIN) == ""


def test_running_on_is_a_fault_at_the_first_place() -> None:
    fault = stop_fault(answer(5, 6, 7, END), [-3.0, 2.0, 3.0, 4.0], margin=MARGIN)
    assert fault == "'Hi': goes on after 1 tokens, where the source ends the turn by 2.00 nats"


def test_stopping_early_is_a_fault() -> None:
    fault = stop_fault(answer(5, END), [-3.0, -2.0], margin=MARGIN)
    assert fault == "'Hi': ends after 1 tokens, where the source goes on by 2.00 nats"


def test_ties_are_no_faults() -> None:
    assert stop_fault(answer(5, 6, END), [-3.0, MARGIN, -MARGIN], margin=MARGIN) == ""
    assert stop_fault(answer(5, 6, END), [-3.0, MARGIN + 0.01, 1.0], margin=MARGIN) != ""
    assert stop_fault(answer(5, 6, END), [-3.0, 0.0, -MARGIN - 0.01], margin=MARGIN) != ""


def test_an_answer_cut_by_the_limit_is_right_while_the_source_goes_on_too() -> None:
    assert stop_fault(answer(5, 6, stopped=False), [-3.0, -2.0], margin=MARGIN) == ""
    assert "goes on after 1" in stop_fault(answer(5, 6, stopped=False), [-3.0, 2.0], margin=MARGIN)


TEXTS = {5: "The", 6: " fox", 7: "<|im_", 8: "start|>"}


def leaked(given: Answer, *choices: int) -> str:
    return leak(given, CONTRACT, choices=choices, decode=lambda ids: "".join(TEXTS[token] for token in ids))


def test_plain_words_leak_nothing() -> None:
    assert leaked(answer(5, 6, END), 5, 6, END) == ""
    assert leaked(answer(5, 6, OTHER_END), 5, 6, END) == ""
    assert leaked(answer(5, 6, stopped=False), 6, 5) == ""


def test_a_tag_inside_the_answer_is_a_leak() -> None:
    assert leaked(answer(5, START, END), 5, 6, END) == "'Hi': generated <|im_start|> (92) inside the answer"


def test_a_tag_that_the_source_would_say_too_belongs() -> None:
    assert leaked(answer(THINK, 5, END), THINK, 5, END) == ""


def test_a_padding_row_is_a_leak() -> None:
    assert leaked(answer(5, 95, END), 5, 6, END) == "'Hi': generated the padding row 95"


def test_a_tag_spelled_out_in_pieces_is_a_leak() -> None:
    assert "spelled out <|im_start|> in" in leaked(answer(5, 7, 8, END), 5, 7, 8, END)


def test_an_end_that_is_no_stop_of_the_source_is_told() -> None:
    assert "ended by token 6, which is no stop of the source" in leaked(answer(5, 6), 5, 6)
