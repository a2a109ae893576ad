"""The texts that tokenizers are compared on, and the table of limits."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import astuple
from itertools import pairwise

import pytest

from hermetiq.errors import HermetiqError
from hermetiq.quantize.spec import FORMATS, GGUF_RECIPES, parse
from hermetiq.verify.strings import MINIMUM, decomposed_strings, parity_strings
from hermetiq.verify.thresholds import FIVE, FOUR, GGUF, limits_for, require_served

SPECIALS = [f"<|tag{number}|>" for number in range(6)]
CHATS = ["<|im_start|>user\nHello<|im_end|>\n", "<|im_start|>user\nBye<|im_end|>\n"]


@pytest.mark.parametrize("specials", [[], SPECIALS, [f"<|s{number}|>" for number in range(300)]])
def test_there_are_enough_and_each_is_another(specials: list[str]) -> None:
    texts = parity_strings(specials, CHATS)
    assert MINIMUM == 2_000
    assert len(texts) == len(set(texts)) >= MINIMUM
    assert texts == parity_strings(specials, CHATS)
    assert set(CHATS) <= set(texts)
    for special in specials:
        assert special in texts
        assert sum(special in text and text != special for text in texts) >= 5


def test_they_are_composed_and_of_every_kind() -> None:
    texts = parity_strings(SPECIALS, CHATS)
    assert all(unicodedata.is_normalized("NFC", text) for text in texts)
    assert "" in texts
    assert {"\x00", " " * 64, "9" * 40, "\r\n"} <= set(texts)
    scripts = {unicodedata.name(letter).split()[0] for text in texts for letter in text if letter.isalpha()}
    assert {"LATIN", "CYRILLIC", "GREEK", "HEBREW", "ARABIC", "THAI", "HANGUL", "HIRAGANA", "DEVANAGARI"} <= scripts
    for text in texts:
        text.encode()  # no lone surrogates, which JSON could carry and UTF-8 not


def test_decomposed_texts_are_not_composed() -> None:
    texts = decomposed_strings()
    assert len(texts) > 5
    assert not any(unicodedata.is_normalized("NFC", text) for text in texts if "\u0301" in text)


def test_every_recipe_has_limits_and_fewer_bits_have_wider_ones() -> None:
    assert set(GGUF) == set(GGUF_RECIPES)
    order = ("F32", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
    for finer, coarser in pairwise(order):
        first, second = GGUF[finer], GGUF[coarser]
        assert first.kl < second.kl
        assert first.top1 > second.top1
        assert first.terminator_drop < second.terminator_drop
        assert first.stop_margin < second.stop_margin


def test_a_limit_of_ones_own_replaces_that_of_kl_alone() -> None:
    ours = limits_for(parse("gguf:Q8_0"), weights=7_000_000_000, max_kl=0.5)
    assert ours.kl == 0.5
    assert astuple(ours)[1:] == astuple(GGUF["Q8_0"])[1:]
    with pytest.raises(HermetiqError):
        parse("gguf:Q9_9")


def test_limits_by_name_serve_the_spec_before_its_format_and_leave_the_others() -> None:
    asked = {"gguf": 0.5, "gguf:Q8_0": 0.01}
    specs = [parse(text) for text in ("gguf:Q8_0", "gguf:Q4_K_M", "gptq:4bit-g64")]
    assert [limits_for(spec, weights=1, max_kl=asked).kl for spec in specs] == [0.01, 0.5, FOUR.kl]
    require_served(asked, specs)
    for name in ("gguf:q8_0", "awq", "gguf:Q6_K"):
        with pytest.raises(HermetiqError, match="no artifact is"):
            require_served({name: 0.5}, specs)


def test_sizes_between_two_types_lie_between_their_limits() -> None:
    four, between, five = (limits_for(parse(f"exl2:{bpw}bpw"), weights=135_000_000) for bpw in ("4.0", "4.5", "5.0"))
    assert (astuple(four), astuple(five)) == (astuple(FOUR), astuple(FIVE))
    assert between.kl == pytest.approx(math.sqrt(four.kl * five.kl))
    assert between.top1 == pytest.approx((four.top1 + five.top1) / 2)
    assert between.stop_margin == pytest.approx((four.stop_margin + five.stop_margin) / 2)


@pytest.mark.parametrize(("weights", "share"), [(1_000, 1.0), (135_000_000, 1.0), (540_000_000, 0.5), (10**10, 0.25)])
def test_larger_models_may_lose_less(weights: int, share: float) -> None:
    limits = limits_for(parse("gguf:Q4_K_M"), weights=weights)
    assert limits.kl == pytest.approx(GGUF["Q4_K_M"].kl * share)
    assert astuple(limits)[1:] == astuple(GGUF["Q4_K_M"])[1:]


@pytest.mark.parametrize("format", FORMATS)
def test_every_spec_has_limits_and_fewer_bits_or_coarser_groups_may_lose_more(format: str) -> None:
    ladders = {
        "gguf": [f"gguf:{recipe}" for recipe in ("F32", "Q8_0", "Q6_K", "Q4_K_M", "Q2_K")],
        "gptq": [f"gptq:{recipe}" for recipe in ("8bit-g32", "4bit-g128-asym-v2", "4bit-channel-actorder", "2bit-g64")],
        "awq": ["awq:4bit-g32"],
        "exl2": [f"exl2:{bpw}bpw" for bpw in ("8.0", "7.9", "6.0", "5.5", "4.65", "3.0", "2.1")],
    }
    limits = [limits_for(parse(spec), weights=135_000_000).kl for spec in ladders[format]]
    assert sorted(set(limits)) == limits
