"""The command line: stdout carries data, stderr carries talk, and errors stop here.

Exit status: 0 good, 1 a check failed, 2 unusable input or usage, 130 interrupted. Everything heavy is imported inside
the command that needs it, so that `--help` is instant.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer
from rich.table import Table

from hermetiq import __version__
from hermetiq.api.options import Device, ExportOptions, LayoutName, PublishOptions, VerifyOptions
from hermetiq.errors import HermetiqError, Refusal
from hermetiq.runtimes.environments import RUNTIMES, ensure, environment_of
from hermetiq.screen import (
    STYLES,
    escape,
    one_line,
    out,
    print_json,
    progress,
    show_changes,
    show_evaluation,
    show_files,
    show_findings,
    show_forward,
    show_job,
    show_parts,
    show_recipes,
    show_release,
    show_repair,
    show_reports,
    talk,
)

if TYPE_CHECKING:
    from hermetiq.release_recipe import ReleaseRecipe
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
    published = is_hub_id(place.as_posix()) and not place.exists()
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
