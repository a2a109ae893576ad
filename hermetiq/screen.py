"""What the command line shows: tables, findings and JSON on stdout, progress and notes on stderr.

Names and texts of a checkpoint are untrusted: they are escaped before a terminal or rich's markup sees them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hermetiq.errors import Finding
from hermetiq.progress import Ticker
from hermetiq.units import size

if TYPE_CHECKING:
    from hermetiq.doctor import Line
    from hermetiq.evaluate import Evaluation
    from hermetiq.forward import Forward
    from hermetiq.manifest import Manifest
    from hermetiq.plan import Job, Plan
    from hermetiq.publish import Job as Release
    from hermetiq.recipes import Recipe
    from hermetiq.repair import Change, Repair
    from hermetiq.verify import ArtifactReport

WIDE = 240
"""Columns where no terminal says how many there are: a table read by a program is never cut."""
out = Console(highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout and sys.stdout.isatty() else WIDE)
talk = Console(stderr=True, highlight=False, emoji=False)
SHOWN_ENDS = 3
"""Turn ends of an artifact that are named, the worst; the manifest has all."""
STYLES = {"error": "bold red", "warning": "yellow", "info": "blue"}
STATES = {"ready": "green", "not installed": "yellow", "missing": "red"}


def escape(text: str) -> str:
    """Tags such as `[INST]` are text to us, not rich markup; control characters never reach the terminal."""
    from rich.markup import escape as escape_markup

    return escape_markup("".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text))


def one_line(text: str) -> str:
    """`escape`, for text of a checkpoint that must not look like a line of ours."""
    return escape(text).replace("\n", "\\n").replace("\t", " ")


def print_json(data: Any) -> None:
    """JSON as UTF-8 text, or all ASCII where stdout has another encoding or a path is no text."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(data, indent=2)
    print(text)


def show_findings(console: Console, findings: Sequence[Finding]) -> None:
    for item in findings:
        place = f"{item.file}: {item.field}" if item.field else item.file
        console.print(
            f"[{STYLES[item.severity]}]{item.severity}[/] [bold]{item.rule}[/] {one_line(place)}", soft_wrap=True
        )
        console.print(f"    found {one_line(item.found)}; expected {one_line(item.expected)}", soft_wrap=True)
        console.print(f"    why: {one_line(item.why)}", soft_wrap=True)
        console.print(f"    repair: {one_line(item.repair)}", soft_wrap=True)


@contextmanager
def progress(title: str) -> Iterator[Ticker]:
    """A bar on stderr where a person is looking; silent where nobody is."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
        console=talk, transient=True, disable=not talk.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(title, total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)


def show_forward(seen: Forward) -> None:
    for note in seen.notes:
        talk.print(f"[blue]note[/] {escape(note)}", soft_wrap=True)
    place = f"{seen.turn_ends} turn ends of {seen.chats} held-out chats"
    if seen.median_rank is None:
        out.print(f"forward: broken before the {place} could be asked about")
    else:
        out.print(f"forward: the terminator is the first choice at {seen.first_choices} of {place}, its median rank "
                  f"{seen.median_rank:g}; the largest activation is {seen.largest_activation:.4g}")  # fmt: skip


def show_repair(result: Repair) -> None:
    show_changes(out, result.changes)
    for item in result.unrepaired:
        show_findings(out, [item.finding])
        out.print(f"    not repaired: {one_line(item.reason)}")
    if result.left_out:
        out.print(f"not copied: {one_line(', '.join(result.left_out))}")
    out.print(f"{len(result.changes)} changes, {len(result.unrepaired)} findings not repaired")


def show_changes(console: Console, changes: Sequence[Change]) -> None:
    for change in changes:
        place = f"{change.file}: {change.field}" if change.field else change.file
        console.print(f"[green]changed[/] [bold]{change.rule or 'restated'}[/] {one_line(place)}", soft_wrap=True)
        console.print(f"    from {one_line(change.old)} to {one_line(change.new)}", soft_wrap=True)
        console.print(f"    why: {one_line(change.why)}", soft_wrap=True)


def show_job(job: Job, *, as_json: bool) -> None:
    """What an export would do, and what it says of its source."""
    show_changes(talk, job.repairs or ())
    show_findings(talk, job.findings)
    if as_json:
        print_json(job.plan.to_json())
    else:
        show_plan(job.plan)


def show_plan(plan: Plan) -> None:
    table = Table("artifact", "size", "bits/weight", "nominal", "fell back", "tensors", box=None)
    for item in plan.files:
        types = ", ".join(f"{count} {kind}" for kind, count in item.types.items())
        bits = (f"{item.bpw:.2f}", f"{item.nominal_bpw:.2f}", f"{item.fallback_share:.0%}")
        table.add_row(item.name, size(item.bytes), *bits, types)
    out.print(table)
    for item in plan.files:
        for gpus, layers in item.unsplit.items():
            if layers:
                out.print(f"{item.name}: tensor parallelism over {gpus} GPUs cannot split {', '.join(layers)}")
    if plan.calibration:
        asked, used, tokens = (plan.calibration[key] for key in ("rows_asked", "rows_used", "tokens"))
        out.print(f"calibration: {used} of {asked} rows, {tokens} tokens of {one_line(plan.calibration['source'])}")
        if refused := plan.calibration["refused"]:
            out.print(f"left out of it: {refused} chats, which no template of the model takes")
    out.print(f"disk {size(plan.disk)}, memory about {size(plan.memory)}")


def show_files(manifest: Manifest, folder: Path) -> None:
    table = Table("file", "size", "bits/weight", "sha256", box=None)
    for item in manifest.artifacts:
        table.add_row(str(folder / item.file), size(item.bytes), f"{item.bpw:.2f}", item.sha256[:16])
    out.print(table)
    for item in manifest.artifacts:
        if item.widths:
            out.print(f"{item.file}: {item.nominal_bpw:.3f} bits per weight of its blocks; expected KL "
                      f"{item.expected_kl:.4f}")  # fmt: skip
        if ending := item.ending:
            before, since = ending.rounded - ending.source, ending.settled - ending.source
            out.print(f"{item.file}: its final norm is settled; where {ending.ends} answers end, the terminator is "
                      f"{since:+.3f} nats from the source's, {before:+.3f} before")  # fmt: skip


def show_reports(reports: Sequence[ArtifactReport]) -> None:
    table = Table("file", "size", "bits/weight", "KL", "top-1", "terminator", "stops", "verdict", box=None)
    for item in reports:
        verdict = "[green]pass[/]" if item.passed else "[bold red]fail[/]"
        table.add_row(Path(item.file).name, size(item.bytes), f"{item.bpw:.2f}", f"{item.kl:.4f}", f"{item.top1:.1%}",
                      f"{item.terminator:+.3f}", item.stops, verdict)  # fmt: skip
    out.print(table)
    for item in reports:
        show_ends(item)
    for note in dict.fromkeys(note for item in reports for note in item.verification.notes):
        talk.print(f"[blue]note[/] {escape(note)}", soft_wrap=True)
    for item in reports:
        for check in item.checks:
            if not check.passed:
                out.print(
                    f"[bold red]fail[/] {escape(Path(item.file).name)}: {check.name}: {escape(check.reason)}",
                    soft_wrap=True,
                )


def show_ends(report: ArtifactReport) -> None:
    """How readily an artifact ends its turns, and where it lost most of that."""
    ends = report.verification.turn_ends
    if not ends:
        return
    before, after = report.first_choices
    asked = f"ended {report.stop_rate:.0%} of its answers" if report.stop_rate == report.stop_rate else "was not asked"
    out.print(f"{one_line(Path(report.file).name)}: the terminator is the first choice at {after} of {len(ends)} turn "
              f"ends (source {before}); in free generation it {asked}", soft_wrap=True)  # fmt: skip
    for end in report.verification.most_lost[:SHOWN_ENDS]:
        out.print(f"    {-end.drop:+.2f} nats, rank {end.source_rank} to {end.artifact_rank}: chat {end.chat}, token "
                  f"{end.position}, …{one_line(end.text)}", soft_wrap=True)  # fmt: skip


def show_recipes(found: Sequence[Recipe], save: Path | None) -> None:
    """The texts as they are, so that one can go straight into a file; whose they are is talk."""
    for recipe in found:
        if recipe.refused:
            place = f"{recipe.runtime}, {one_line(recipe.artifact)}"
            talk.print(f"[yellow]no recipe[/] {place}: {one_line(recipe.refused)}", soft_wrap=True)
        elif save:
            out.print(escape(str(save / recipe.name)))
        else:
            talk.print(f"[bold]{recipe.runtime}[/] {one_line(recipe.name)}", soft_wrap=True)
            print(recipe.text)


def show_evaluation(found: Evaluation) -> None:
    from hermetiq.evaluate import tables

    for grid in (tables.scores(found), tables.averages(found)):
        if grid.rows:
            table = Table(*map(one_line, grid.head), box=None)
            for row in grid.rows:
                table.add_row(*map(one_line, row))
            out.print(table)
    out.print(one_line(tables.caption(found)))
    for note in found.notes:
        talk.print(f"[blue]note[/] {one_line(note)}", soft_wrap=True)


def show_release(job: Release, *, as_json: bool) -> None:
    if as_json:
        print_json(job.to_json())
        return
    table = Table("repo", "branch", "file", "size", "sha256", box=None)
    for repo in job.plan.repos:
        for branch in repo.branches:
            for file in branch.files:
                made = "written on the way" if not file.bytes else file.sha256[:16] or "split on the way"
                table.add_row(repo.id, branch.name, file.path, size(file.bytes) if file.bytes else "", made)
    out.print(table)
    base = job.release.base_model or "no base model"
    out.print(f"{size(job.plan.bytes)} in all; {one_line(base)}; licence {one_line(job.release.licence.name)}")


def show_parts(lines: Sequence[Line]) -> None:
    table = Table("part", "state", "what", "reads", "remedy", box=None)
    for line in lines:
        state = f"[{STATES[line.state]}]{line.state}[/]"
        table.add_row(line.name, state, escape(line.what), ", ".join(line.formats), escape(line.remedy))
    out.print(table)
