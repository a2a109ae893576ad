"""A GGUF before the walk: our reader opens it, llama.cpp loads it and answers."""

from __future__ import annotations

from hermetiq.errors import CheckFailed
from hermetiq.progress import Ticker
from hermetiq.verification import Check

from . import judge
from .examined import Examined, Stored, bytes_found, opened, told
from .judge import Findings
from .observe import observe
from .reference import Reference


def examine(stored: Stored, asked: Reference, tick: Ticker) -> Examined:
    """Bytes, the contract as our reader sees it, and what llama.cpp says."""
    what = f"llama.cpp reads {stored.path.name}"
    tick(what, 0.0)
    digest, found = bytes_found(stored)
    checkpoint, _, contract = opened(stored, asked.contract)
    found += contract
    try:
        seen = observe(stored.path, asked, lambda share: tick(what, share))
    except CheckFailed as error:
        failure = Findings((Check("runtime", False, "failed", "runs", told(error, stored.path)),))
        return Examined(stored, digest, checkpoint, found + failure)
    found += Findings((Check("runtime", True, "runs", "runs"),)) + judge.runtime_findings(asked, seen)
    return Examined(stored, digest, checkpoint, found, seen.answers, seen.logprobs)
