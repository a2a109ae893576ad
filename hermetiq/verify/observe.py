"""What llama.cpp says of one artifact, all asked in one session: the file is loaded once and then let go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hermetiq.runtimes.llama_cpp import LlamaCpp

from .reference import Reference
from .smoke import Answer, answered

ANSWER_TOKENS = 64
"""Longest answer asked for; the smoke prompts have natural answers of a third of it."""
ENDS_ASKED = 4
"""Turn ends at which the runtime's whole distribution is compared with the walk's; each is megabytes of JSON."""
MARGIN = 16
"""Tokens of context beyond the longest text, for what a runtime adds."""


@dataclass(frozen=True)
class Observation:
    """The runtime's answers to everything in a `Reference`."""

    tokens: tuple[tuple[int, ...], ...]
    decomposed: tuple[tuple[int, ...], ...]
    plain: tuple[int, ...]
    special: tuple[int, ...]
    """Ids of one prompt without and with what the runtime adds by the file's policy."""
    stops: frozenset[int]
    prompts: tuple[str, ...]
    """`Reference.samples` as the runtime's own template engine prints them."""
    answers: tuple[Answer, ...]
    logprobs: tuple[tuple[int, npt.NDArray[np.float64]], ...]
    """Index into `Reference.ends`, and log-probabilities (vocabulary,) of what follows."""


def observe(path: Path, reference: Reference, tick: Callable[[float], None]) -> Observation:
    """Ask llama.cpp; `tick` hears the share that is done.

    Raises:
        CheckFailed: llama.cpp does not load the file, or dies on a question.
    """
    longest = max(len(ids) for ids in (*reference.rows, *(prompt.ids for prompt in reference.smoke)))
    asked = spread(len(reference.ends), ENDS_ASKED)
    sample = reference.sample
    with LlamaCpp(path, context=longest + ANSWER_TOKENS + MARGIN) as runtime:
        tokens = runtime.tokenize([encoding.text for encoding in reference.texts])
        tick(0.3)
        decomposed = runtime.tokenize([encoding.text for encoding in reference.decomposed])
        (plain,), (special,) = runtime.tokenize([sample]), runtime.tokenize([sample], add_special=True)
        stops = runtime.end_of_generation
        prompts = tuple(runtime.apply_template(prompt.messages) for prompt in reference.samples)
        answers = []
        for number, prompt in enumerate(reference.smoke):
            generation = runtime.generate(prompt.ids, max_tokens=ANSWER_TOKENS)
            answers.append(answered(prompt, generation))
            tick(0.3 + 0.4 * (number + 1) / len(reference.smoke))
        logprobs = []
        for number, index in enumerate(asked):
            row, position = reference.ends[index]
            logprobs.append((index, runtime.next_logprobs(reference.rows[row][: position + 1])))
            tick(0.7 + 0.3 * (number + 1) / len(asked))
    return Observation(
        tokens=tuple(map(tuple, tokens)),
        decomposed=tuple(map(tuple, decomposed)),
        plain=tuple(plain),
        special=tuple(special),
        stops=stops,
        prompts=prompts,
        answers=tuple(answers),
        logprobs=tuple(logprobs),
    )


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices below `count`, evenly apart."""
    return [index * count // wanted for index in range(wanted)] if count > wanted else list(range(count))
