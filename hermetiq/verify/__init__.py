"""Proof that an artifact is still the same chat model: contract, parity, fidelity, smoke."""

from hermetiq.verification import Check
from hermetiq.verify.artifact import verify
from hermetiq.verify.report import ArtifactReport
from hermetiq.verify.source import open_source, require_source

__all__ = ["ArtifactReport", "Check", "open_source", "require_source", "verify"]
