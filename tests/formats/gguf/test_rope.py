"""Rotary scaling that GGUF cannot state is refused; the kinds it can state are proven in `test_logits`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hermetiq.errors import HermetiqError
from hermetiq.formats.gguf import plan
from hermetiq.formats.gguf.rope import factors, scaling
from tests.formats.gguf.small import CONFIG, header

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type"),
        ({"type": "longrope", "short_factor": [1.0]}, "rope_type"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": "2"}, "factor"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor"),
        ({"rope_type": "linear", "factor": 10**400}, "factor"),
        ({"rope_type": "linear", "factor": True}, "factor"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({**YARN, "beta_slow": 2.0}, "beta_slow"),
        ({**YARN, "attention_factor": 1.0}, "attention_factor"),
        ({**YARN, "mscale_all_dim": 1.0}, "mscale_all_dim"),
        ({**YARN, "truncate": False}, "truncate"),
        ({**YARN, "original_max_position_embeddings": 512.5}, "original_max_position_embeddings"),
        ({**YARN, "attention_factor": 10**400}, "attention_factor"),
        ({**LLAMA3, "low_freq_factor": None}, "low_freq_factor"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(HermetiqError, match=rf"config\.json: rope_scaling\.{field}"):
        plan(header(replace(CONFIG, rope_scaling=fields)), "F32")


def test_fields_that_say_what_llama_cpp_assumes_are_accepted() -> None:
    spelled = {**YARN, "beta_fast": 32, "beta_slow": 1.0, "attention_factor": 1.138629, "truncate": True}
    assert scaling(replace(CONFIG, rope_scaling=spelled)) == scaling(replace(CONFIG, rope_scaling=YARN))


def test_yarn_without_an_original_length_means_the_context_length() -> None:
    config = replace(CONFIG, rope_scaling={"rope_type": "yarn", "factor": 2.0})
    assert scaling(config) == {"type": "yarn", "factor": 2.0, "original_context_length": 512}


def test_no_scaling_writes_no_key_and_no_factors() -> None:
    for fields in (None, {"rope_type": "default"}):
        assert scaling(replace(CONFIG, rope_scaling=fields)) == {}
        assert factors(replace(CONFIG, rope_scaling=fields)) is None


def test_llama3_keeps_short_waves_and_stretches_long_ones() -> None:
    found = factors(replace(CONFIG, rope_scaling=LLAMA3))
    assert found is not None
    assert len(found) == CONFIG.head_dim // 2
    assert found[0] == 1.0
    assert found[-1] == 8.0
    assert list(found) == sorted(found)
