"""The prompt formats that chat models are trained in, told by what a template prints.

A template's source may be written in a hundred ways; what comes out is the format. Each has a token that closes the
assistant's turn. Some open turns with plain text: a model that runs on past its end then shows it by that text alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

OTHER: Final = "other"
"""A template that prints none of the formats below."""
NONE: Final = "none"
"""No template: a base model."""


@dataclass(frozen=True)
class PromptFormat:
    """One format: how a rendered chat shows it, and what its contract is."""

    name: str
    printed: re.Pattern[str]
    """Found in a skeleton (`Probe.skeletons`) of the format, and of none further down the table.

    Gaps are bounded: what is searched was printed by an untrusted template.
    """
    terminator: str | None
    """The token that closes the assistant's turn; None where that is EOS, whatever its name."""
    openings: tuple[str, ...]
    """What opens a turn of the user or the system. A runtime has to stop on the text where it is no token."""
    document_end: str | None = None
    """The base model's EOS, which publishers leave in tokenizer files while generation_config.json lists both."""


_TABLE: Final = (
    PromptFormat(
        "phi-4",
        re.compile(r"<\|im_sep\|>\s*\{assistant\}"),
        terminator="<|im_end|>",
        openings=("<|im_start|>",),
        document_end="<|endoftext|>",
    ),
    # Between tag and answer may stand what a model thinks.
    PromptFormat(
        "chatml",
        re.compile(r"<\|im_start\|>assistant[^{]{0,200}\{assistant\}"),
        terminator="<|im_end|>",
        openings=("<|im_start|>",),
    ),
    # With a modifier behind the colon in extended forms: `### Response: (length = medium)`.
    PromptFormat(
        "alpaca",
        re.compile(r"### Response:[^{]{0,200}\{assistant\}"),
        terminator=None,
        openings=("### Instruction:", "### Input:"),
    ),
    PromptFormat(
        "llama-3",
        re.compile(r"<\|start_header_id\|>assistant<\|end_header_id\|>[^{]{0,200}\{assistant\}"),
        terminator="<|eot_id|>",
        openings=("<|start_header_id|>",),
        document_end="<|end_of_text|>",
    ),
    PromptFormat(
        "gemma",
        re.compile(r"<start_of_turn>model\s*\{assistant\}"),
        terminator="<end_of_turn>",
        openings=("<start_of_turn>",),
        document_end="<eos>",
    ),
    PromptFormat(
        "phi",
        re.compile(r"<\|end\|>\s*<\|assistant\|>\s*\{assistant\}"),
        terminator="<|end|>",
        openings=("<|user|>", "<|system|>"),
        document_end="<|endoftext|>",
    ),
    PromptFormat(
        "zephyr",
        re.compile(r"<\|assistant\|>\s*\{assistant\}"),
        terminator=None,
        openings=("<|user|>", "<|system|>"),
    ),
    # Both write [INST]; Llama 2 begins every question with BOS and marks the system's words.
    PromptFormat(
        "llama-2",
        re.compile(r"<<SYS>>\s*\{system\}|\{assistant\}\s*</s>\s*<s>\s*\[INST\]"),
        terminator=None,
        openings=("[INST]",),
    ),
    PromptFormat(
        "mistral",
        re.compile(r"\[/INST\]\s*\{assistant\}"),
        terminator=None,
        openings=("[INST]",),
    ),
)

FORMATS: Final[Mapping[str, PromptFormat]] = MappingProxyType({form.name: form for form in _TABLE})
"""By name, in the order in which they are looked for."""


def recognised(skeletons: Iterable[str]) -> PromptFormat | None:
    """The format of a template's renderings, whose texts are `{user}`, `{assistant}` and `{system}`; None for others.

    `{}` in the rest of a rendering stands for itself.
    """
    printed = list(skeletons)
    return next((form for form in _TABLE if any(form.printed.search(text) for text in printed)), None)
