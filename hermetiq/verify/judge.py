"""Verdicts: what was measured and observed becomes checks against limits, figures, and notes.

Every comparison is written so that NaN fails it, and figures that are no finite number are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from hermetiq.chat import contract as contracts
from hermetiq.chat.contract import ChatContract
from hermetiq.verification import Check, TagRow, TurnEnd, Verification

from . import parity, smoke
from .fidelity import CHUNK, Fidelity, Readiness, logprobs
from .observe import Observation
from .reading import Reading
from .reference import Reference
from .smoke import Answer
from .thresholds import RUNTIME_KL, Limits

DIGITS = 6
"""Significant digits of a figure: what lies beyond changes with the number of threads that add it up."""


@dataclass(frozen=True)
class Findings:
    """Checks, figures, notes and records as they come together for one artifact."""

    checks: tuple[Check, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    """By name, finite."""
    notes: tuple[str, ...] = ()
    turn_ends: tuple[TurnEnd, ...] = ()
    tag_rows: tuple[TagRow, ...] = ()

    def __add__(self, other: Findings) -> Findings:
        return Findings(
            self.checks + other.checks,
            {**self.figures, **other.figures},
            self.notes + other.notes,
            self.turn_ends + other.turn_ends,
            self.tag_rows + other.tag_rows,
        )

    def verified(self, sha256: str) -> Verification:
        """All of it, as the manifest keeps it for the bytes of this digest."""
        return Verification(sha256, self.checks, self.figures, self.notes, self.turn_ends, self.tag_rows)


def contract_check(source: ChatContract, artifact: ChatContract) -> Check:
    """The contract that our own reader finds in the file is the source's."""
    differences = contracts.compare(source, artifact)
    reason = "; ".join(f"{item.field}: source {item.source}, file {item.artifact}" for item in differences)
    return Check("contract", not differences, len(differences), 0, reason)


def runtime_findings(asked: Reference, seen: Observation) -> Findings:
    """The contract as llama.cpp sees it: the same ids, the same BOS, the same stops."""
    tags = {tag.id for tag in asked.contract.tags}
    inside = parity.inside_turns(asked.rows, asked.ends, tags)
    stops, notes = parity.check_stops(asked.contract, seen.stops, inside_turns=inside)
    checks = (
        parity.check_tokens(asked.texts, seen.tokens),
        parity.check_bos(asked.contract, seen.plain, seen.special),
        stops,
    )
    notes += parity.template_notes([prompt.text for prompt in asked.samples], seen.prompts)
    notes += parity.decomposition_notes(asked.decomposed, seen.decomposed)
    return Findings(checks, {"parity_texts": len(asked.texts)}, notes)


def fidelity_findings(measured: Fidelity, limits: Limits) -> Findings:
    """KL, first choices and the terminator against the type's limits."""
    source, artifact = _mean_logprob(measured.source_ends), _mean_logprob(measured.artifact_ends)
    before, after = (ends[measured.worst_end] for ends in (measured.source_ends, measured.artifact_ends))
    drop = source - artifact
    worst = f"worst at chat {after.row}, token {after.position}: {before.logprob:.2f} to {after.logprob:.2f} nats"
    checks = (
        _at_most("kl", measured.kl_mean, limits.kl, "the distributions have moved too far"),
        _at_least("top1", measured.top1_agreement, limits.top1, "too many first choices changed"),
        _at_most("terminator", drop, limits.terminator_drop, f"turns end less readily, {worst}"),
    )
    figures = {
        "tokens": measured.tokens,
        "kl_mean": measured.kl_mean,
        "kl_p99": measured.kl_p99,
        "perplexity_source": measured.perplexity_source,
        "perplexity_artifact": measured.perplexity_artifact,
        "top1_agreement": measured.top1_agreement,
        "turn_ends": len(measured.source_ends),
        "terminator_logprob_source": source,
        "terminator_logprob_artifact": artifact,
        "terminator_rank_source": float(np.mean([end.rank for end in measured.source_ends])),
        "terminator_rank_artifact": float(np.mean([end.rank for end in measured.artifact_ends])),
        "terminator_worst_source": before.logprob,
        "terminator_worst_artifact": after.logprob,
    }
    return Findings(checks, finite(figures))


def agreement_findings(
    seen: Sequence[tuple[int, npt.NDArray[np.float64]]],  # as in `Examined.logprobs`
    asked: Reference,
    artifact: Reading,
) -> Findings:
    """llama.cpp and the walk compute the same model; where they do not, only our own reader understands the file."""
    divergences, terminators = [], []
    for index, theirs in seen:
        row, position = asked.ends[index]
        ours = logprobs(artifact.logits(artifact.states[row][position : position + 1]))[0]
        divergences.append(float((ours.exp() * (ours - torch.from_numpy(theirs))).sum()))
        terminators.append(theirs[asked.contract.terminator_id])
    kl = float(np.mean(divergences))
    check = _at_most("runtime-agreement", kl, RUNTIME_KL, "llama.cpp computes another model than the file's weights")
    figures = {"runtime_kl": kl, "runtime_terminator_logprob": float(np.mean(terminators))}
    return Findings((check,), finite(figures))


def smoke_findings(
    answers: Sequence[Answer],
    asked: Reference,
    source: Reading,  # of each answer, in their order
    limits: Limits,
    decode: Callable[[Sequence[int]], str],
) -> Findings:
    """Along the artifact's answers: does it stop where the source would, and keep its tags to itself?"""
    disagreed, leaked = [], []
    for answer, states in zip(answers, source.states, strict=True):
        deciding = states[len(answer.prompt_ids) - 1 :]
        table = torch.cat([logprobs(source.logits(some)) for some in torch.split(deciding, CHUNK)])
        leads = smoke.stop_leads(table, asked.contract.stop_ids).tolist()
        disagreed.append(smoke.stop_fault(answer, leads, margin=limits.stop_margin))
        choices = table.argmax(dim=1).tolist()
        leaked.append(smoke.leak(answer, asked.contract, choices=choices, decode=decode))
    prompts, stopped = len(answers), sum(answer.generation.stopped for answer in answers)
    disagreed, leaked = [fault for fault in disagreed if fault], [fault for fault in leaked if fault]
    agreed = prompts - len(disagreed)
    checks = (
        Check("smoke-stops", not disagreed, agreed, prompts, "; ".join(disagreed)),
        Check("smoke-leaks", not leaked, len(leaked), 0, "; ".join(leaked)),
    )
    figures = {"smoke_prompts": prompts, "smoke_agreed": agreed, "smoke_stopped": stopped}
    return Findings(checks, finite({**figures, "stop_rate": stopped / prompts if prompts else math.nan}))


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures that are numbers, rounded to `DIGITS`."""
    return {name: value for name, figure in figures.items() if (value := number(figure)) is not None}


def number(value: float) -> float | None:
    """The value rounded to `DIGITS`; None where it is not finite, for which JSON has no word."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _at_most(name: str, value: float, limit: float, reason: str) -> Check:
    return _check(name, value <= limit, value, limit, reason)


def _at_least(name: str, value: float, limit: float, reason: str) -> Check:
    return _check(name, value >= limit, value, limit, reason)


def _check(name: str, passed: bool, value: float, limit: float, reason: str) -> Check:
    """A check of a figure; a value that is not finite is spelled out."""
    told = number(value)
    return Check(name, passed, str(value) if told is None else told, limit, "" if passed else reason)


def _mean_logprob(ends: Sequence[Readiness]) -> float:
    return float(np.mean([end.logprob for end in ends]))
