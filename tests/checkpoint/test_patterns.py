"""Patterns of an adapter: the module that peft would pick, and no pattern that takes forever."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from hermetiq.checkpoint.fields import Fields
from hermetiq.checkpoint.patterns import read_patterns
from hermetiq.errors import Refusal

MODULES = [
    f"model.layers.{layer}.{module}"
    for layer in (0, 1, 10, 11)
    for module in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.down_proj")
] + ["model.embed_tokens", "lm_head"]
ORDINARY = [
    "q_proj",
    "self_attn.q_proj",
    "^model.layers.1.mlp",
    r"^model\.layers\.1\.mlp\.down_proj$",
    r"model\.layers\.1.*",
    r".*layers\.\d+\.mlp\..*",
    r"layers\.[01]\.(?:self_attn|mlp)\.(q|down)_proj",
    r"layers\.1?0\.mlp\.gate_proj",
    r"layers\.[^]1]\.mlp\.gate_proj",
    r"layers.\d{2}.mlp.gate_proj",
    "lm_head|embed_tokens",
    "proj",
    "",
]


@pytest.mark.parametrize("first", ORDINARY)
def test_a_module_gets_the_value_that_peft_gives_it(first: str) -> None:
    values = {pattern: number for number, pattern in enumerate(dict.fromkeys([first, *ORDINARY]), start=1)}
    patterns = read_patterns(Fields({"rank_pattern": values}, "adapter_config.json"), "rank_pattern", whole=True)
    for module in MODULES:
        assert patterns.value_for(module, 0) == values.get(get_pattern_key(values, module), 0), module


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="am.*+?(|)[]^$\\{}12,:=", max_size=40))
def test_every_pattern_is_refused_or_matched_at_once(pattern: str) -> None:
    started = time.process_time()
    try:
        patterns = read_patterns(Fields({"key": {pattern: 1}}, "file"), "key", whole=True)
    except Refusal:
        return
    for module in MODULES:
        assert patterns.value_for(module, 0) == bool(re.match(rf"(.*\.)?({pattern})$", module))
    assert time.process_time() - started < 2
