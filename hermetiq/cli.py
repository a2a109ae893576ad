"""The command line: stdout carries data, stderr carries talk, and errors stop here.

Exit status: 0 good, 1 a check failed, 2 unusable input or usage, 130 interrupted. Everything heavy is imported inside
the command that needs it, so that `--help` is instant.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hermetiq import __version__
from hermetiq.api.options import Device, ExportOptions, LayoutName, PublishOptions, VerifyOptions
from hermetiq.errors import Finding, HermetiqError, Refusal
from hermetiq.progress import Ticker
from hermetiq.runtimes.environments import RUNTIMES, ensure, environment_of

if TYPE_CHECKING:
    from hermetiq.doctor import Line
    from hermetiq.evaluate import Evaluation
    from hermetiq.forward import Forward
    from hermetiq.manifest import Manifest
    from hermetiq.plan import Job, Plan
    from hermetiq.publish import Job as Release
    from hermetiq.recipes import Recipe
    from hermetiq.release_recipe import ReleaseRecipe
    from hermetiq.repair import Change, Repair
    from hermetiq.verify import ArtifactReport

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Ship a chat model quantized, and prove that it is still the same chat model.",
)
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
WIDE = 240
"""Columns where no terminal says how many there are: a table read by a program is never cut."""

out = Console(highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout and sys.stdout.isatty() else WIDE)
talk = Console(stderr=True, highlight=False, emoji=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON to stdout.")]
Adapter = Annotated[str | None, typer.Option(help="LoRA folder (peft layout), merged at load.")]
InitTagsFrom = Annotated[
    str | None, typer.Option(help="Rows for untrained tags: copy:TOKEN, mean or parent:PATH.", metavar="FROM")
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option(
        help="The model's chat template, where it has none: a text file, or a parent's folder.", metavar="PATH"
    ),
]
Ignore = Annotated[list[str] | None, typer.Option(help="Leave out the findings of this rule.", metavar="RULE")]
BaseModel = Annotated[
    bool, typer.Option("--base-model", help="The model has no chat template, and that is right: EOS ends its texts.")
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", help="File with the whole release (docs/python.md), in place of options.", metavar="FILE"),
]

SHOWN_ENDS = 3
"""Turn ends of an artifact that are named, the worst; the manifest has all."""


STYLES = {"error": "bold red", "warning": "yellow", "info": "blue"}
STATES = {"ready": "green", "not installed": "yellow", "missing": "red"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; every error of ours ends here as one message and an exit status."""
    # Waiting threads of torch and llama.cpp must sleep: spinning, two busy programs slow each other tenfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What the terminal's encoding has no letter for is spelled out, and stops nothing.
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=arguments, prog_name="hermetiq")
    except HermetiqError as error:
        fail(error)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            talk.print("interrupted; nothing unfinished was left under its final name")
        raise
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        what, where = error.strerror or str(error), str(error.filename or "")
        fail(HermetiqError(what, where=where, remedy="check the path, its permissions and the disk"))


def fail(error: HermetiqError) -> NoReturn:
    """Say what, where and the remedy on stderr, and exit with the error's status."""
    if isinstance(error, Refusal) and len(error.findings) > 1:
        show_findings(talk, error.findings)
        talk.print(f"[bold red]refused[/]: {len(error.findings)} findings", soft_wrap=True)
    else:
        place = f"{one_line(error.where)}: " if error.where else ""
        talk.print(f"[bold red]error[/]: {place}{escape(error.what)}", soft_wrap=True)
        if error.remedy:
            talk.print(f"[bold]remedy[/]: {escape(error.remedy)}", soft_wrap=True)
    sys.exit(error.exit_code)


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
def loading() -> Iterator[None]:
    """While libraries load, an interrupt ends the program at once.

    Nothing is open yet, and their C code would make a crash or nothing at all of a `KeyboardInterrupt`.
    """
    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.default_int_handler:
        yield  # Somebody decided otherwise, `nohup` for instance.
        return
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


@contextmanager
def progress(title: str) -> Iterator[Ticker]:
    """A bar on stderr where a person is looking; silent where nobody is."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
        console=talk, transient=True, disable=not talk.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(title, total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)


T = TypeVar("T")


def given(value: T | None, name: str) -> T:
    """What the command line must say where no recipe does."""
    if value is None:
        raise HermetiqError("is missing", where=name, remedy=f"give {name}, or --recipe FILE")
    return value


def read_recipe(file: Path, context: typer.Context, decides: Iterable[str]) -> ReleaseRecipe:
    """A recipe, where nothing that it `decides` (parameters by name) is decided on the command line too."""
    from hermetiq.release_recipe import ReleaseRecipe

    sources = {name: context.get_parameter_source(name) for name in decides}
    twice = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    if twice:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in twice)
        raise HermetiqError(f"{file} decides this", where=names, remedy=f"leave {names} out, or change the recipe")
    return ReleaseRecipe.read(file)


@app.callback(invoke_without_command=True)
def entrance(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"hermetiq {__version__}")
        raise typer.Exit


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="Folder, .gguf file or Hub id.")],
    adapter: Adapter = None,
    select: Annotated[list[str] | None, typer.Option(help="Only this rule.", metavar="RULE")] = None,
    ignore: Ignore = None,
    parent: Annotated[
        list[str] | None, typer.Option(help="Folder of a model it was merged of, or trained from.")
    ] = None,
    weights: Annotated[bool, typer.Option(help="Scan the tensors for NaN and untrained rows.")] = True,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="The weights are not here: look at the other files alone.")
    ] = False,
    forward: Annotated[
        bool,
        typer.Option("--forward", help="Run the model over held-out chats too: does it stop, does float16 hold it?"),
    ] = False,
    base_model: BaseModel = False,
    as_json: AsJson = False,
) -> None:
    """Lint a checkpoint or an artifact against the rules."""
    with loading():
        from hermetiq.api.inspect import inspect as run

        if forward:
            import hermetiq.forward  # noqa: F401 - it would be loaded later, where an interrupt can do harm.

    with progress("reading") as tick:
        result = run(
            path, adapter=adapter, select=tuple(select or ()), ignore=tuple(ignore or ()), parents=tuple(parent or ()),
            weights=weights, files_only=files_only, forward=forward, base_model=base_model, progress=tick,
        )  # fmt: skip
    seen = result.forward
    if forward and seen is None:
        talk.print("[yellow]--forward[/]: the model was not run, since it has no chat contract")
    if as_json:
        print_json(result.to_json() | ({"forward": seen and seen.to_json()} if forward else {}))
    else:
        show_findings(out, result.findings)
        if contract := result.contract:
            stops = ", ".join((*map(str, contract.stop_ids), *map(repr, contract.stop_strings)))
            out.print(f"prompt format {contract.prompt_format}; terminator {one_line(contract.terminator)} = "
                      f"{contract.terminator_id}; stops on {escape(stops)}; {contract.tokens} tokens, "
                      f"{contract.rows} rows")  # fmt: skip
        if seen:
            show_forward(seen)
        counts = {kind: sum(item.severity == kind for item in result.findings) for kind in STYLES}
        out.print(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    if any(item.severity == "error" for item in result.findings):
        raise typer.Exit(1)


@app.command("pre-commit")
def pre_commit(files: Annotated[list[Path], typer.Argument(help="Files that a commit touches.")]) -> None:
    """Inspect the folders of tokenizer and configuration files, without weights."""
    with loading():
        from hermetiq.chat.inspect import inspect as run

    broken = False
    for folder in sorted({file.parent for file in files}):
        if not (folder / "config.json").exists():
            out.print(f"{one_line(str(folder))}: no config.json, so no model that could be inspected")
            continue
        found = run(str(folder), files_only=True).findings
        if any(item.severity == "error" for item in found):
            out.print(f"{one_line(str(folder))}:")
            show_findings(out, found)
            broken = True
    if broken:
        raise typer.Exit(1)


def show_forward(seen: Forward) -> None:
    for note in seen.notes:
        talk.print(f"[blue]note[/] {escape(note)}", soft_wrap=True)
    place = f"{seen.turn_ends} turn ends of {seen.chats} held-out chats"
    if seen.median_rank is None:
        out.print(f"forward: broken before the {place} could be asked about")
    else:
        out.print(f"forward: the terminator is the first choice at {seen.first_choices} of {place}, its median rank "
                  f"{seen.median_rank:g}; the largest activation is {seen.largest_activation:.4g}")  # fmt: skip


@app.command()
def rule(
    name: Annotated[str | None, typer.Argument(help="Rule or case (U01) to explain; rules are listed without.")] = None,
) -> None:
    """List the rules, or explain one, or a case that people run into."""
    from hermetiq.cases import CASES, explain_case
    from hermetiq.rules import RULES, explain

    if name is None:
        table = Table("rule", "severity", "what", box=None)
        for entry in RULES.values():
            table.add_row(entry.name, f"[{STYLES[entry.severity]}]{entry.severity}[/]", escape(entry.what))
        out.print(table)
    else:
        out.print(escape(explain_case(name.upper()) if name.upper() in CASES else explain(name)))


@app.command()
def repair(
    path: Annotated[str, typer.Argument(help="Folder or Hub id.")],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; the source is only read.")],
    adapter: Adapter = None,
    init_tags: InitTagsFrom = None,
    chat_template: ChatTemplate = None,
    base_model: BaseModel = False,
    as_json: AsJson = False,
) -> None:
    """Write a copy whose files agree with the chat contract, and tell every change."""
    with loading():
        from hermetiq.repair import InitTags, template_at
        from hermetiq.repair import repair as run

    with progress("repairing") as tick:
        started = None if init_tags is None else InitTags.parse(init_tags)
        template = None if chat_template is None else template_at(chat_template)
        result = run(
            path, folder, adapter=adapter, init_tags=started, chat_template=template, base_model=base_model, tick=tick
        )
    if as_json:
        print_json(result.to_json())
    else:
        show_repair(result)
    if not result.whole:
        raise typer.Exit(1)


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


@app.command()
def export(
    context: typer.Context,
    path: Annotated[
        str | None, typer.Argument(help="Folder, .gguf file or Hub id; with --recipe it is left out.")
    ] = None,
    folder: Annotated[Path | None, typer.Argument(metavar="OUT", help="Folder to make.")] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            help="What to make, for instance gptq:4bit-g64, awq:4bit-g64, exl2:4.65bpw, gguf:Q4_K_M; repeatable.",
            metavar="SPEC",
        ),
    ] = None,
    recipe: RecipeFile = None,
    adapter: Adapter = None,
    ignore: Ignore = None,
    name: Annotated[str | None, typer.Option(help="Base name of the files.")] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="Corpus: .jsonl of chats or texts, .txt, or a `datasets` id; built in by default."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of tokens to calibrate on.")] = 128,
    row_tokens: Annotated[int, typer.Option(min=32, help="Tokens of a row, at most.")] = 512,
    seed: Annotated[int, typer.Option(help="Draws the rows.")] = 0,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Calibrate each block behind the quantized ones; one SPEC only.")
    ] = False,
    imatrix: Annotated[
        bool | None,
        typer.Option(help="Importance matrix for GGUF; by default where something else is calibrated anyway."),
    ] = None,
    measurement: Annotated[
        Path | None, typer.Option(help="measurement.json of an earlier export, for further EXL2 targets.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where calibration and solvers run.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the GGUF quantizer; all cores by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in OUT.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted export in OUT stopped.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair the model first, in memory; the source is only read.")
    ] = False,
    init_tags: InitTagsFrom = None,
    chat_template: ChatTemplate = None,
    base_model: BaseModel = False,
    as_json: AsJson = False,
) -> None:
    """Quantize a checkpoint to everything that is asked for, in one pass of calibration and one read."""
    with loading():
        from hermetiq.api.export import export as run
        from hermetiq.api.export import prepare_export

    if recipe is None:
        source, place = given(path, "PATH"), given(folder, "OUT")
        options = ExportOptions(
            to=given(to, "--to"), adapter=adapter, ignore=tuple(ignore or ()), name=name, calibration=calibration,
            rows=rows, row_tokens=row_tokens, seed=seed, sequential=sequential, imatrix=imatrix,
            measurement=measurement, repair=repair, init_tags=init_tags, chat_template=chat_template,
            base_model=base_model,
        )  # fmt: skip
    else:
        release = read_recipe(recipe, context, ExportOptions.__annotations__)
        if folder:
            raise HermetiqError(f"{recipe} names the source", where="PATH", remedy="give OUT alone")
        source, place, options = release.path, Path(path) if path else release.folder, release.export_options()
    with progress("opening") as tick:
        if dry_run:
            show_job(prepare_export(source, **options), as_json=as_json)
            return
        manifest = run(
            source, place, overwrite=overwrite, resume=resume, threads=threads, device=device, progress=tick, **options
        )
    show_changes(talk, manifest.repairs or ())
    show_findings(talk, manifest.source.findings)
    if as_json:
        print_json(manifest.to_json())
    else:
        show_files(manifest, place)


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


def size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@app.command()
def verify(
    context: typer.Context,
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", help="Folder of an export, or ORG/NAME of a repo that was published."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="The checkpoint it was made from; a published repo may name it itself.")
    ] = None,
    artifact: Annotated[
        list[str] | None, typer.Option(help="Of a published repo only this, such as gguf:Q4_K_M.", metavar="SPEC")
    ] = None,
    recipe: RecipeFile = None,
    adapter: Adapter = None,
    max_kl: Annotated[float | None, typer.Option(help="Largest mean KL per token allowed, for every type.")] = None,
    runtime: Annotated[str | None, typer.Option(help=f"Ask a package too: {', '.join(RUNTIMES)}.")] = None,
    init_tags: InitTagsFrom = None,
    junit: Annotated[Path | None, typer.Option(help="Write the checks here, as JUnit XML.", metavar="FILE")] = None,
    as_json: AsJson = False,
) -> None:
    """Prove that the artifacts are still the same chat model."""
    with loading():
        from hermetiq import ci
        from hermetiq.api.verify import verify as run
        from hermetiq.api.verify import verify_published
        from hermetiq.checkpoint.hub import is_hub_id
        from hermetiq.formats.output import write_files

    if recipe is None:
        place, checkpoint = given(folder, "OUT"), source
        options = VerifyOptions(adapter=adapter, max_kl=max_kl, init_tags=init_tags)
    else:
        release = read_recipe(recipe, context, ("source", *VerifyOptions.__annotations__))
        place, checkpoint, options = folder or release.folder, release.path, release.verify_options()
    published = folder is not None and is_hub_id(folder.as_posix()) and not folder.exists()
    if artifact and not published:
        raise HermetiqError("chooses from a published repo", where="--artifact", remedy="leave it out")
    with progress("verifying") as tick:
        if published:
            found = verify_published(
                place.as_posix(), checkpoint, artifacts=artifact or (), runtime=runtime, progress=tick, **options
            )
            reports = found.reports
        else:
            reports = run(place, given(checkpoint, "--source"), runtime=runtime, progress=tick, **options)
    if published and found.elsewhere:
        names = one_line(", ".join(found.elsewhere))
        talk.print(f"[blue]note[/] not in this repo, and not looked at: {names}", soft_wrap=True)
    if junit:
        write_files({junit: ci.junit(reports)})
    for line in ci.workflow_commands(reports, os.environ):
        print(line, file=sys.stderr)
    conclude(reports, as_json=as_json)


def conclude(reports: Sequence[ArtifactReport], *, as_json: bool) -> None:
    """Show what was verified; exit 1 when a check failed."""
    if as_json:
        print_json([report.to_json() for report in reports])
    else:
        show_reports(reports)
    if not all(report.passed for report in reports):
        raise typer.Exit(1)


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


@app.command()
def recipes(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of an export.")],
    runtime: Annotated[str | None, typer.Option(help="Only for this program; all without it.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write them as files into this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print how Ollama, llama.cpp, LM Studio, vLLM and others are to serve the artifacts."""
    with loading():
        from hermetiq import recipes as kitchen
        from hermetiq.manifest import Manifest

    found = kitchen.recipes(Manifest.read(folder), kitchen.seen_from(folder, save), runtime=runtime)
    if save:
        kitchen.save(found, save)
    if as_json:
        print_json([recipe.to_json() for recipe in found])
    else:
        show_recipes(found, save)


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


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of an export.")]) -> None:
    """Write OUT/report.html: quality against size, turn ends, bits and errors by layer, on one page."""
    with loading():
        from hermetiq.report import report as run

    print(run(folder))


@app.command("eval")
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of an export.")],
    source: Annotated[str, typer.Option(help="The checkpoint it was made from.")],
    tasks: Annotated[str, typer.Option(help="Tasks, groups or tags, with commas.", metavar="A,B")],
    adapter: Adapter = None,
    init_tags: InitTagsFrom = None,
    tasks_path: Annotated[
        Path | None, typer.Option(help="Task files of your own, beside the harness's.", metavar="DIR")
    ] = None,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Let the files of --tasks-path run Python.")] = False,
    limit: Annotated[int | None, typer.Option(help="Ask only the first N questions of each task.", metavar="N")] = None,
    device: Annotated[Device, typer.Option(help="Where the models are computed.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Run benchmarks of EleutherAI's lm-evaluation-harness on the source and the artifacts."""
    with loading():
        from hermetiq.evaluate import evaluate as run
        from hermetiq.repair import InitTags
        from hermetiq.verify import open_source

    started = None if init_tags is None else InitTags.parse(init_tags)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    with progress("opening") as tick:
        opened = open_source(folder, source, adapter=adapter, init_tags=started)
        found = run(
            folder, opened, names, tasks_path=tasks_path, limit=limit, allow_code=allow_code, device=device,
            tick=tick,
        )  # fmt: skip
    if as_json:
        print_json(found.to_json())
    else:
        show_evaluation(found)


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


@app.command()
def publish(
    context: typer.Context,
    folder: Annotated[Path | None, typer.Argument(metavar="OUT", help="Folder of an export that was verified.")] = None,
    repo: Annotated[
        str | None, typer.Argument(metavar="REPO", help="ORG/NAME on the Hub; -GGUF and the like are added.")
    ] = None,
    recipe: RecipeFile = None,
    layout: Annotated[LayoutName, typer.Option(help="A repo for each format, or one for all.")] = "per-format",
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the model that was quantized, or none.", metavar="ID")
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="Its licence, where no card states the right one.", metavar="NAME")
    ] = None,
    force: Annotated[
        str | None, typer.Option(help="Publish what no verification passed; the card says why.", metavar="REASON")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make new repos private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and send nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a verified export to the Hugging Face Hub, whole or not at all; run again, it goes on after a cut."""
    with loading():
        from hermetiq.api.publish import prepare_release
        from hermetiq.api.publish import publish as run

    if recipe is None:
        place, target = given(folder, "OUT"), given(repo, "REPO")
        options = PublishOptions(layout=layout, base_model=base_model, license=license, private=private)
    else:
        release = read_recipe(recipe, context, PublishOptions.__annotations__)
        if repo:
            raise HermetiqError(f"{recipe} names the repo", where="REPO", remedy="give OUT alone")
        place, target, options = folder or release.folder, release.repo, release.publish_options()
    with progress("checking") as tick:
        if dry_run:
            show_release(prepare_release(place, target, force=force, progress=tick, **options), as_json=as_json)
            return
        done = run(place, target, force=force, progress=tick, **options)
    if as_json:
        print_json(done.to_json())
    else:
        for url in done.urls:
            out.print(url)


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


@app.command()
def doctor(
    install: Annotated[
        list[str] | None, typer.Option(help="Make the environment of this runtime; repeatable.", metavar="NAME")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what works on this machine, what can be installed, and what cannot and why."""
    with loading():
        from hermetiq.doctor import examine

    for name in install or ():
        environment_of(name)  # A wrong name is told before the first of them is built.
    for name in install or ():
        with progress(f"installing {name}") as tick:
            ensure(name, tick)
    lines = examine()
    if as_json:
        print_json([line.to_json() for line in lines])
    else:
        show_parts(lines)


def show_parts(lines: Sequence[Line]) -> None:
    table = Table("part", "state", "what", "reads", "remedy", box=None)
    for line in lines:
        state = f"[{STATES[line.state]}]{line.state}[/]"
        table.add_row(line.name, state, escape(line.what), ", ".join(line.formats), escape(line.remedy))
    out.print(table)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")] = Path("out/demo"),
    as_json: AsJson = False,
) -> None:
    """Run the whole pipeline on a small real chat model, offline."""
    with loading():
        from hermetiq.demo import run

    with progress("opening") as tick:
        reports = run(folder, tick=tick)
    conclude(reports, as_json=as_json)
