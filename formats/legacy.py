"""Formats that have outlived their runtimes: what whoever makes or gets such an artifact must be told (U56).

They are still written, because people still run them; that they have ended is no secret of the file's. As of November
2026: exllamav2's README says that it is archived; text-generation-webui took its loader out in March 2026
(oobabooga/textgen#7415), LocalAI its backend in January (mudler/LocalAI!8186); TabbyAPI's README sends to a branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hermetiq.errors import Finding
from hermetiq.quantize.spec import Spec
from hermetiq.rules import finding


@dataclass(frozen=True)
class Legacy:
    """A format whose runtime is no longer worked on."""

    why: str
    loaded_by: tuple[str, ...]
    """What still loads it."""
    dropped_by: tuple[str, ...]
    """What did, and does no more."""

    def __str__(self) -> str:
        return f"{self.why}; still loaded by {' and '.join(self.loaded_by)}, no longer by {', '.join(self.dropped_by)}"


LEGACY: Mapping[str, Legacy] = {
    "exl2": Legacy(
        why="exllamav2, which it was made for, is archived",
        loaded_by=("exllamav2 0.3.2", "the branch exl2-checkpoint of TabbyAPI"),
        dropped_by=("TabbyAPI's main branch", "text-generation-webui", "LocalAI"),
    ),
}
"""By format of the spec."""


def legacy_note(spec: Spec) -> str:
    """One line for a report or a card; empty where the format is alive."""
    known = LEGACY.get(spec.format)
    return f"{spec.format} is a legacy format: {known}" if known else ""


def legacy_finding(spec: Spec) -> Finding | None:
    """The same as a finding (`legacy-format`) of the plan; None where the format is alive."""
    known = LEGACY.get(spec.format)
    if known is None:
        return None
    return finding("legacy-format", file=str(spec), found=str(known), expected="a format whose runtimes are worked on")
