"""Renders chat templates without trusting them.

A template is a program from the Hub. It runs in `render_worker.py`, a child process with limits on CPU time, memory
and output, in the sandboxed Jinja environment that transformers uses, so the text is the one that transformers gives.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hermetiq.errors import HermetiqError

CPU_SECONDS = 2
WALL_SECONDS = 30
MEMORY_BYTES = 512 * 1024 * 1024
OUTPUT_CHARACTERS = 2_000_000
"""Of one rendered chat."""
REQUESTS_PER_SECOND = 50
CHARACTERS_PER_SECOND = 5_000_000
MEMORY_PER_CHARACTER = 16
"""What honest work may take beyond these limits: they grow with the job's chats and characters."""

_WORKER = Path(__file__).with_name("render_worker.py")
_ENVIRONMENT = ("PATH", "PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "TZ")
"""What the child may see of ours: enough to start Python, no tokens."""

Message = Mapping[str, Any]


@dataclass(frozen=True)
class RenderRequest:
    """One chat to render, as `apply_chat_template` takes it; `variables` are seen by the template by name."""

    messages: Sequence[Message]
    add_generation_prompt: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)


class TemplateError(HermetiqError):
    """The template has a syntax error, or raised one for this chat."""


class TemplateUnsafe(HermetiqError):
    """The template left the sandbox's rules or its limits; nothing of it was used (rule `template-unsafe`)."""


def render(template: str, requests: Sequence[RenderRequest]) -> list[str]:
    """Render every chat in one child process; the texts come in the order of the requests.

    Raises:
        TemplateError: a chat could not be rendered.
        TemplateUnsafe: the template is not safe to render, or does not end.
    """
    texts: list[str] = []
    for outcome in render_each(template, requests):
        if isinstance(outcome, TemplateError):
            raise outcome
        texts.append(outcome)
    return texts


def render_each(template: str, requests: Sequence[RenderRequest]) -> list[str | TemplateError]:
    """Like `render`, but a chat that the template refuses (a system role, say) becomes its error.

    Raises:
        TemplateUnsafe: the template is not safe to render, or does not end.
    """
    if not requests:
        return []
    job = json.dumps({"template": template, "requests": [_variables(request) for request in requests]})
    more_seconds = len(requests) // REQUESTS_PER_SECOND + len(job) // CHARACTERS_PER_SECOND
    return [_outcome(answer) for answer in json.loads(_run(job, more_seconds))]


def _variables(request: RenderRequest) -> dict[str, Any]:
    return {
        "tools": None,
        "documents": None,
        **request.variables,
        "messages": [dict(message) for message in request.messages],
        "add_generation_prompt": request.add_generation_prompt,
    }


def _outcome(answer: Mapping[str, str]) -> str | TemplateError:
    if "unsafe" in answer:
        raise _unsafe(_printable(answer["unsafe"]))
    if "error" in answer:
        return TemplateError(_printable(answer["error"]), where="chat template")
    return answer["text"]


def _run(job: str, more_seconds: int) -> str:
    """Run the worker on a job, with so many seconds beyond the usual, and return what it printed."""
    wall_seconds = WALL_SECONDS + more_seconds
    limits = (CPU_SECONDS + more_seconds, MEMORY_BYTES + MEMORY_PER_CHARACTER * len(job), OUTPUT_CHARACTERS)
    try:
        done = subprocess.run(
            # -P: the folder of the worker, and the one the user stands in, must not shadow modules.
            [sys.executable, "-P", str(_WORKER), *map(str, limits)],
            input=job,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=wall_seconds,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        raise _unsafe(f"did not end within {wall_seconds} seconds") from None
    if done.returncode == -signal.SIGXCPU:
        raise _unsafe("did not end within its CPU time")
    if done.returncode < 0:
        raise _unsafe(f"ended its process with {signal.Signals(-done.returncode).name}")
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        if last.startswith("MemoryError"):
            raise _unsafe("exhausts its memory")
        raise HermetiqError(f"the template process failed: {_printable(last)}", where="chat template")
    return done.stdout


def _unsafe(what: str) -> TemplateUnsafe:
    return TemplateUnsafe(
        what, where="chat template", remedy="replace it with the plain template of the model's family"
    )


def _printable(text: str) -> str:
    """Text of the template without the control characters that could drive a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
