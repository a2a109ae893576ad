"""What `verify` tells about one artifact, in the words of its table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from hermetiq.manifest import Artifact
from hermetiq.verification import Check, Verification


@dataclass(frozen=True)
class ArtifactReport:
    """One artifact and what was found out about it; figures that could not be measured are NaN."""

    artifact: Artifact
    verification: Verification

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def checks(self) -> tuple[Check, ...]:
        return self.verification.checks

    @property
    def file(self) -> str:
        """Relative to the folder of the export."""
        return self.artifact.file

    @property
    def bytes(self) -> int:
        return self.artifact.bytes

    @property
    def bpw(self) -> float:
        """Bits per weight."""
        return self.artifact.bpw

    @property
    def kl(self) -> float:
        """Mean KL(source || artifact), nats per token."""
        return self._figure("kl_mean")

    @property
    def top1(self) -> float:
        """Share of tokens with the same first choice, 0 to 1."""
        return self._figure("top1_agreement")

    @property
    def terminator(self) -> float:
        """Change of the terminator's mean log-probability where turns end, artifact minus source, in nats."""
        return self._figure("terminator_logprob_artifact") - self._figure("terminator_logprob_source")

    @property
    def stops(self) -> str:
        """Prompts on which artifact and source agree where the turn ends, of all."""
        agreed, prompts = self._figure("smoke_agreed"), self._figure("smoke_prompts")
        return "-" if math.isnan(prompts) else f"{agreed:.0f}/{prompts:.0f}"

    @property
    def stop_rate(self) -> float:
        """Share of the smoke prompts, 0 to 1, whose answer the artifact ended by itself; NaN where it was not asked."""
        return self._figure("stop_rate")

    @property
    def first_choices(self) -> tuple[int, int]:
        """At how many turn ends the terminator is the first choice of the source, and of the artifact."""
        ends = self.verification.turn_ends
        return sum(end.source_rank == 1 for end in ends), sum(end.artifact_rank == 1 for end in ends)

    def to_json(self) -> dict[str, Any]:
        """Stable, for scripts: file, verdict, every check and figure, every turn end and the rows of every tag."""
        verification = asdict(self.verification)
        return {"file": self.file, "spec": self.artifact.spec, "passed": self.passed, **verification}

    def _figure(self, name: str) -> float:
        return self.verification.figures.get(name, math.nan)
