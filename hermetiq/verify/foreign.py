"""The proof by somebody else's reader: a package that people load the format with, asked about the artifact itself.

This goes around the walks. `observe` asks the package everything in one go; once our own reader has walked the artifact
and the source has walked the package's answers, `agreement` and `stops` hold them against each other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hermetiq.checkpoint.base import Checkpoint
from hermetiq.checkpoint.folder import FLOATS
from hermetiq.errors import CheckFailed, HermetiqError
from hermetiq.progress import Ticker, silent
from hermetiq.quantize.spec import Spec
from hermetiq.runtimes.environments import RUNTIMES, environment_of, lacking, runtime
from hermetiq.runtimes.packages import Answers, Question, ask
from hermetiq.verification import Check

from . import judge, parity
from .fidelity import logprobs
from .judge import Findings
from .observe import ANSWER_TOKENS, spread
from .reading import Reading
from .reference import Reference
from .smoke import Answer, answered, generated
from .thresholds import Limits

ENDS_ASKED = 16
"""Turn ends at which the package's logits are compared with ours."""
EXACT = 0.005
HALF = 0.25
"""Largest difference of a logit: of two computations in float32, and of one that rounds to float16 after every step.

SmolLM2-135M differs by 0.0001 and by 0.08 to 0.18; another zero-point, order or grouping by several units."""
SUMMED_IN_HALF = 2 * HALF
"""exllamav2 adds up in float16, too. Not measured on a GPU yet; its weights are compared bit for bit besides."""
AGREEMENT = {
    "auto-gptq": EXACT,
    "autoawq": HALF,
    "gptqmodel": HALF,
    "transformers": HALF,
    "exllamav2": SUMMED_IN_HALF,
}

SOLE_READERS: Mapping[str, str] = {"exl2": "exllamav2"}
"""By format, the runtime that alone reads it, where there is but one."""
GAPS: Mapping[str, tuple[Callable[[Spec], bool], str]] = {
    "auto-gptq": (
        lambda spec: spec.linear.zero_offset == 0,
        "takes every GPTQ folder for version 1, and would misread -v2",
    ),
    "gptqmodel": (
        lambda spec: spec.linear.zero_offset == 1 and not spec.linear.symmetric,
        "refuses asymmetric GPTQ of version 1 that is not its own; it reads -v2",
    ),
    "exllamav2": (
        lambda spec: spec.format == "gptq" and spec.linear.bits != 4,
        "takes every GPTQ folder for one of 4 bits",
    ),
}
"""By runtime, specs of its formats that it does not read, and why."""


@dataclass(frozen=True)
class Observed:
    """What a package says of one artifact."""

    runtime: str
    findings: Findings
    """What needs no walk: whether it runs, its tokens, its stops."""
    answers: tuple[Answer, ...] = ()
    """To the smoke prompts; empty where it does not run."""
    logits: tuple[tuple[int, Tensor], ...] = ()
    """Index into `Reference.ends`, and the logits (vocabulary,) of what follows, in float32."""
    weights: Mapping[str, str] | None = None
    """As in `Answers`."""


def unread(name: str, spec: Spec) -> str:
    """Why the runtime does not read what `spec` makes; empty where it does.

    Raises:
        HermetiqError: no such runtime.
    """
    if spec.format not in runtime(name).formats:
        return f"{name} does not read {spec.format}"
    gap, reason = GAPS.get(name, (None, ""))
    return f"{name} {reason}" if gap and gap(spec) else ""


def unasked(asked: str | None, spec: Spec) -> str:
    """A note where the one runtime that reads `spec` is not the one `asked`, and why; empty otherwise."""
    reader = SOLE_READERS.get(spec.format)
    if reader is None or reader == asked:
        return ""
    reason = lacking(reader) or f"--runtime {reader} asks it"
    return f"{reader}, the one reader of {spec.format}, was not asked: {reason}"


def require_reader(name: str, specs: Sequence[Spec]) -> None:
    """Stop before any work where the runtime can say nothing of an export.

    Raises:
        HermetiqError: no such runtime, this machine lacks what it needs, or it reads none of `specs`.
    """
    environment_of(name)
    reasons = [unread(name, spec) for spec in specs]
    if all(reasons):
        readers = [other for other in RUNTIMES if not all(unread(other, spec) for spec in specs)]
        readers = [other for other in readers if not lacking(other)] or readers
        remedy = f"--runtime {' or '.join(readers)}" if readers else "without --runtime, llama.cpp is asked"
        raise HermetiqError("; ".join(dict.fromkeys(reasons)), remedy=remedy)


def observe(
    name: str,
    folder: Path,
    asked: Reference,
    decode: Callable[[Sequence[int]], str],  # by the source's tokenizer
    tick: Ticker = silent,
) -> Observed:
    """Load the artifact in `folder` with the runtime `name` and ask it everything.

    Raises:
        HermetiqError: this machine lacks what the package needs, or it cannot be installed here.
    """
    ends = spread(len(asked.ends), ENDS_ASKED)
    question = Question(
        rows=asked.rows,
        positions=[asked.ends[index] for index in ends],
        prompts=[prompt.ids for prompt in asked.smoke],
        texts=[encoding.text for encoding in asked.texts],
        max_tokens=ANSWER_TOKENS,
    )
    try:
        told = ask(name, folder, question, tick=tick)
    except CheckFailed as error:
        return Observed(name, Findings((Check(name, False, "failed", "runs", error.what),)))
    return Observed(
        name,
        Findings((Check(name, True, "runs", "runs"),)) + _named(name, _stops(asked, told) + _tokens(name, asked, told)),
        answers=_answers(asked, told, decode),
        logits=tuple(zip(ends, torch.from_numpy(told.logits), strict=True)),
        weights=told.weights,
    )


def agreement(seen: Observed, asked: Reference, artifact: Reading) -> Findings:
    """The package and our own reader compute the same logits; where they do not, one of them misreads the artifact."""
    limit = AGREEMENT[seen.runtime]
    differences, divergences = [], []
    for index, theirs in seen.logits:
        row, position = asked.ends[index]
        ours = artifact.logits(artifact.states[row][position : position + 1])
        if ours.shape[1] != len(theirs):
            reason = f"{seen.runtime} has {len(theirs)} rows of vocabulary, our reader {ours.shape[1]}"
            return _named(seen.runtime, Findings((Check("agreement", False, "incomparable", limit, reason),)))
        mine, other = logprobs(ours)[0], logprobs(theirs[None])[0]
        differences.append((ours[0] - theirs).abs().max())
        divergences.append((mine.exp() * (mine - other)).sum())
    if not differences:
        return Findings()
    largest, kl = float(torch.stack(differences).max()), float(torch.stack(divergences).mean())
    # Written so that NaN fails.
    passed = largest <= limit
    reason = "" if passed else f"{seen.runtime} computes another model than our reader, by a KL of {kl:.2g} nats"
    check = Check("agreement", passed, f"{largest:.2g}", limit, reason)
    figures = {"logit_difference": largest, "kl": kl}
    finite = {figure: value for figure, value in figures.items() if math.isfinite(value)}
    return _named(seen.runtime, Findings((check,), finite))


def weights(seen: Observed, artifact: Checkpoint) -> Findings:
    """Every packed linear is to the package, bit for bit, the float16 matrix that our own reader makes of it.

    Raises:
        Refusal: a tensor cannot be read.
    """
    if seen.weights is None:
        return Findings()
    packed = [name for name in artifact.model.expected_tensors() if artifact.tensors[name].dtype not in FLOATS]
    names = dict.fromkeys((*packed, *seen.weights))  # Those that only one of the two takes for packed differ.
    differing = [name for name in names if name not in packed or seen.weights.get(name) != _digest(artifact.load(name))]
    reason = f"{len(differing)} of {len(names)} linears differ, the first: {differing[0]}" if differing else ""
    return _named(seen.runtime, Findings((Check("weights", not differing, len(differing), 0, reason),)))


def _digest(weight: Tensor) -> str:
    """SHA-256 of a matrix as float16 in rows, as packages tell it."""
    return hashlib.sha256(weight.half().contiguous().numpy().tobytes()).hexdigest()


def stops(
    seen: Observed,
    asked: Reference,
    source: Reading,  # of each answer, in their order
    limits: Limits,
    decode: Callable[[Sequence[int]], str],
) -> Findings:
    """Chats that the package generates end where the source would end them, by the artifact's own list of stops."""
    if not seen.answers:
        return Findings()
    return _named(seen.runtime, judge.smoke_findings(seen.answers, asked, source, limits, decode))


def _named(name: str, found: Findings) -> Findings:
    """The same under the runtime's name, so that they stand beside those of our own reader."""
    return Findings(
        tuple(replace(check, name=f"{name}-{check.name}") for check in found.checks),
        {f"{name}_{figure}": value for figure, value in found.figures.items()},
        found.notes,
    )


def _stops(asked: Reference, told: Answers) -> Findings:
    found, wanted = sorted(told.stops), sorted(asked.contract.stop_ids)
    reason = "" if found == wanted else "the package takes another list of stops from the artifact's files"
    return Findings((Check("stop-ids", found == wanted, str(found), str(wanted), reason),))


def _tokens(name: str, asked: Reference, told: Answers) -> Findings:
    """Tokens by the package's own transformers; one that is too old for the tokenizer is told, and fails nothing."""
    if told.tokens is None:
        return Findings(
            notes=(f"{name} does not read the tokenizer, its ids must be made elsewhere: {told.tokenizer_error}",)
        )
    return Findings((parity.check_tokens(asked.texts, told.tokens, reader=name),))


def _answers(asked: Reference, told: Answers, decode: Callable[[Sequence[int]], str]) -> tuple[Answer, ...]:
    return tuple(
        answered(prompt, generated(ids, told.stops, decode))
        for prompt, ids in zip(asked.smoke, told.continuations, strict=True)
    )
