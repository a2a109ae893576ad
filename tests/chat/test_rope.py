"""Rotary embeddings in the old spelling, in the new one, in both, and in two that contradict each other."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from hermetiq.chat.inspect import lint
from hermetiq.checkpoint import open_checkpoint
from hermetiq.checkpoint.base import Checkpoint
from tests.fixtures.models import tiny_checkpoint

LINEAR: dict[str, Any] = {"rope_type": "linear", "factor": 2.0}
OLD_LINEAR: dict[str, Any] = {"type": "linear", "factor": 2.0}
DEFAULT: dict[str, Any] = {"rope_type": "default", "rope_theta": 5e5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint(tmp_path_factory.mktemp("rope"), family="qwen2", tokenizer="bpe", layers=1))


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"rope_theta": 5e5}, []),
        ({"rope_theta": 5e5, "rope_scaling": OLD_LINEAR}, []),
        ({"rope_theta": 500000, "rope_parameters": DEFAULT}, []),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000}}, []),
        ({"rope_theta": 5e5, "rope_scaling": OLD_LINEAR, "rope_parameters": DEFAULT | LINEAR}, []),
        ({"rope_parameters": DEFAULT}, [("rope_theta", "warning")]),
        ({"rope_theta": 1e4, "rope_parameters": DEFAULT}, [("rope_theta", "error")]),
        ({"rope_theta": 5e5, "rope_parameters": DEFAULT | LINEAR}, [("rope_scaling", "warning")]),
        ({"rope_theta": 5e5, "rope_scaling": OLD_LINEAR, "rope_parameters": DEFAULT}, [("rope_type", "error")]),
        (
            {"rope_theta": 5e5, "rope_scaling": LINEAR, "rope_parameters": DEFAULT | LINEAR | {"factor": 4.0}},
            [("factor", "error")],
        ),
        *(({"rope_theta": 1, "rope_scaling": odd, "rope_parameters": odd}, []) for odd in (None, 5, "x", [], {})),
    ],
)
def test_the_spellings_are_compared(
    stated: dict[str, Any], expected: list[tuple[str, str]], checkpoint: Checkpoint
) -> None:
    changed = copy.copy(checkpoint)
    changed.documents = {**checkpoint.documents, "config.json": stated}
    findings = lint(changed, select=["rope-form"]).findings
    assert [(item.field, item.severity) for item in findings] == expected
