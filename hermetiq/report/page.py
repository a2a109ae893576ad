"""From a manifest to one HTML page with nothing outside it: no script, no font, no request.

The page shows names and texts of a checkpoint, which is untrusted, so every value is escaped by the template engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import isnan
from pathlib import Path
from typing import Final

from jinja2 import Environment, StrictUndefined

from hermetiq.formats.output import write_files
from hermetiq.manifest import REPORT, Artifact, Manifest
from hermetiq.quantize.ladder import LADDER
from hermetiq.quantize.spec import parse
from hermetiq.report.charts import KINDS, Grid, Point, Scatter, before_after, by_layer, quality
from hermetiq.stages import Stages
from hermetiq.units import size
from hermetiq.verification import Check, TurnEnd, Verification
from hermetiq.verify.report import ArtifactReport

WORST: Final = 3
"""Turn ends that are shown by their words, for each artifact."""
_LAYER: Final = re.compile(rf"model\.layers\.\d{{1,4}}\.[a-z_]+\.({'|'.join(KINDS)})_proj")
_RUNGS: Final[Mapping[str, float]] = {str(rung): rung.mean_bits for rung in LADDER}
"""Bits of a code by what the manifest calls a rung."""


@dataclass(frozen=True)
class Section:
    """All that the page says of one artifact."""

    name: str
    """What it is called in charts: the spec."""
    kind: str
    """Its format."""
    told: ArtifactReport
    verified: bool
    """Whether what is told was measured on the artifact as it is now."""
    ends: Scatter | None
    errors: Grid | None
    widths: Grid | None

    @property
    def passed(self) -> bool:
        return self.verified and self.told.passed

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.told.checks if not check.passed)

    @property
    def worst(self) -> tuple[TurnEnd, ...]:
        return self.told.verification.most_lost[:WORST]


def report(folder: Path) -> Path:
    """Write `report.html` into the folder of an export, of what its manifest says, and say where it lies.

    Raises:
        HermetiqError: there is no manifest, or one that cannot be read; the page cannot be written.
    """
    page = folder / REPORT
    write_files({page: render(Manifest.read(folder), Stages.read(folder)).encode()})
    return page


def render(manifest: Manifest, stages: Stages) -> str:
    """The page as text; the same manifest and stages make the same bytes."""
    sections = tuple(_section(manifest, artifact) for artifact in manifest.artifacts)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["size"] = size
    template = environment.from_string(files("hermetiq.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        manifest=manifest,
        contract=manifest.source.contract,
        sections=sections,
        quality=quality(points) if (points := list(_points(sections))) else None,
        stages=stages,
    )


def _section(manifest: Manifest, artifact: Artifact) -> Section:
    found = manifest.verified(artifact)
    told = ArtifactReport(artifact, found or Verification(artifact.sha256, (), {}))
    kind = parse(artifact.spec).format
    ends = [
        Point(end.source_logprob, end.artifact_logprob, end.text, kind, good=True)
        for end in told.verification.turn_ends
        if end.source_logprob is not None and end.artifact_logprob is not None
    ]
    errors = {name: value for name, value in artifact.errors.items() if _LAYER.fullmatch(name)}
    bits = {name: _RUNGS[rung] for name, rung in artifact.widths.items() if _LAYER.fullmatch(name) and rung in _RUNGS}
    return Section(
        name=artifact.spec,
        kind=kind,
        told=told,
        verified=found is not None,
        ends=before_after(ends) if ends else None,
        errors=by_layer(errors, log=True, unit="of the output's energy") if errors else None,
        widths=by_layer(bits, log=False, unit="bits") if bits else None,
    )


def _points(sections: Sequence[Section]) -> Iterator[Point]:
    """The artifacts whose KL was measured, by bits per weight."""
    for section in sections:
        kl, bpw = section.told.kl, section.told.bpw
        if not isnan(kl):
            told = f"{section.name}: {bpw:.2f} bits per weight, KL {kl:.4f}"
            yield Point(bpw, kl, told, section.kind, section.passed, section.name)
