"""`hermetiq repair`: from a checkpoint to a copy whose files agree, as one straight line.

The copy is written beside its place, looked at as `inspect` looks at any model, and only then put there. So what the
account calls repaired has been seen repaired, and what is still wrong is told with the reason why it stays.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from hermetiq.chat.checks import CHECKS, READS_WEIGHTS
from hermetiq.chat.inspect import inspect
from hermetiq.chat.subject import Subject, examine
from hermetiq.chat.weight_checks import tie_conflict
from hermetiq.checkpoint import Checkpoint, open_checkpoint
from hermetiq.checkpoint.documents import DOCUMENTS, TEMPLATE
from hermetiq.checkpoint.shards import listed
from hermetiq.companions import VOCABULARIES
from hermetiq.errors import Finding, HermetiqError, Refusal
from hermetiq.formats.output import write_files
from hermetiq.progress import Ticker, silent
from hermetiq.repair.change import Change, file_changes
from hermetiq.repair.files import repaired_files, stored_files
from hermetiq.repair.mended import MendedCheckpoint
from hermetiq.repair.rows import InitTags, NewRows, missing_rows, started_rows
from hermetiq.repair.weights import write_weights
from hermetiq.rules import RULES

_NO_SOURCE: Final = "Nothing in the folder says what would be right."
_REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "weight-nan": "The numbers that stood there are in no file of the folder.",
        "tag-untrained": "Only training, or a parent's row (--init-tags parent:PATH), teaches a model a tag; the mean "
        "or a copy is where training can start.",
        "template-tokens": "A new token would have a row that no training has seen.",
        "duplicate-token": "Which of the ids the model was trained with is in no file.",
        "pretokenizer-unknown": "Another pre-tokenizer would cut text in another way than the training did.",
    }
)
"""By rule: why a repair leaves it."""


@dataclass(frozen=True)
class Unrepaired:
    """What is still wrong with the copy, and why a repair cannot help it."""

    finding: Finding
    reason: str


@dataclass(frozen=True)
class Repair:
    """The account of one repair."""

    source: str
    folder: str
    changes: tuple[Change, ...]
    unrepaired: tuple[Unrepaired, ...]
    left_out: tuple[str, ...]
    """Files and folders of the source that are no part of a chat model, and stay behind."""

    @property
    def whole(self) -> bool:
        """Whether no error is left."""
        return all(each.finding.severity != "error" for each in self.unrepaired)

    def to_json(self) -> dict[str, Any]:
        """The account, with these keys in every version."""
        return {
            "source": self.source,
            "folder": self.folder,
            "changes": [asdict(change) for change in self.changes],
            "unrepaired": [asdict(each) for each in self.unrepaired],
            "left_out": list(self.left_out),
        }


def repair(path: str, folder: Path, *, init_tags: InitTags | None = None, tick: Ticker = silent) -> Repair:
    """Write a copy of the model at `path` whose files agree with its chat contract. The source is only read.

    What cannot be repaired but leaves a model that loads (NaN, an untrained tag) is in `Repair.unrepaired`, and the
    copy is written all the same: it is no worse than its source. Repairing a repaired folder changes nothing.

    Args:
        path: folder of safetensors, or Hub id.
        folder: absent or empty; all of it appears at once.
        init_tags: where untrained tags get a row from; they keep theirs where None.

    Raises:
        HermetiqError: `folder` is no place for it, or `init_tags` has no row to give.
        Refusal: no chat model can be made of the source: it does not open, is quantized, or has no contract.
    """
    source = _opened(path)
    _require_room(folder, source)
    subject = examine(source)
    if subject.contract is None:
        raise Refusal(*(item for item in subject.noticed if item.severity == "error"))
    mended, changes = _mended(source, subject, init_tags)
    restated = repaired_files(mended, replace(subject.contract, rows=mended.model.rows))
    stored = stored_files(source.path, dict.fromkeys((*DOCUMENTS, TEMPLATE, *VOCABULARIES, *restated)))
    more, files = file_changes(stored, restated, _broken(subject, mended))
    folder = folder.resolve()
    staged = folder.with_name(f"{folder.name}.partial")
    _make(staged)
    try:
        write_files({staged / name: data for name, data in files.items()})
        write_weights(staged, mended, tick)
        findings = inspect(str(staged)).findings
        left_out = sorted({each.name for each in source.path.iterdir()} - {each.name for each in staged.iterdir()})
        staged.replace(folder)
    except BaseException:
        shutil.rmtree(staged)
        raise
    return Repair(path, str(folder), (*more, *changes), tuple(_unrepaired(findings)), tuple(left_out))


def _opened(path: str) -> Checkpoint:
    source = open_checkpoint(path)
    if not source.path.is_dir():
        remedy = "give the folder that it was converted from"
        raise HermetiqError("a repair writes a folder, and a .gguf has none of its files", where=path, remedy=remedy)
    if quantized := [item for item in source.findings if item.rule == "source-quantized"]:
        raise Refusal(*quantized)
    return source


def _require_room(folder: Path, source: Checkpoint) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise HermetiqError("not a folder", where=str(folder), remedy="choose another OUT")
    if folder.is_dir() and any(folder.iterdir()):
        raise HermetiqError("the folder is not empty", where=str(folder), remedy="choose an empty OUT")
    if folder.resolve().is_relative_to(source.path.resolve()):
        raise HermetiqError("it lies in the source", where=str(folder), remedy="choose another OUT")
    existing = next(path for path in folder.absolute().parents if path.exists())
    free = shutil.disk_usage(existing).free
    needed = sum(path.stat().st_size for path in source.path.iterdir() if path.is_file())
    if free < needed:
        raise HermetiqError(
            f"the copy takes {needed} bytes, {free} are free", where=str(folder), remedy="free disk space"
        )


def _make(staged: Path) -> None:
    try:
        staged.mkdir(parents=True)
    except FileExistsError as error:
        remedy = "delete it if no repair is running"
        raise HermetiqError("left by an interrupted repair", where=str(staged), remedy=remedy) from error


def _mended(source: Checkpoint, subject: Subject, init: InitTags | None) -> tuple[MendedCheckpoint, list[Change]]:
    """The source with the weights that the copy gets, and what changed in them."""
    tied = source.model.tied and not any(tie_conflict(subject))
    added = missing_rows(source)
    grown = MendedCheckpoint(source, _values(added), tied=tied)
    started = started_rows(grown, replace(subject, checkpoint=grown), init) if init else {}
    rows = {name: {**added.get(name, {}), **started.get(name, {})} for name in {**added, **started}}
    return MendedCheckpoint(source, _values(rows), tied=tied), [*_growth(source, added), *_starts(source, started)]


def _values(rows: NewRows) -> dict[str, dict[int, Any]]:
    return {name: {index: each.row for index, each in new.items()} for name, new in rows.items()}


def _growth(source: Checkpoint, added: NewRows) -> Iterator[Change]:
    rule = "vocab-overflow"
    for name, new in added.items():
        info = source.tensors[name]
        rows = f"{info.shape[0] + len(new)} rows; {listed(f'{index}: {each.new}' for index, each in new.items())}"
        yield Change(rule, info.file, name, f"{info.shape[0]} rows", rows, RULES[rule].why)


def _starts(source: Checkpoint, started: NewRows) -> Iterator[Change]:
    rule = "tag-untrained"
    for name, new in started.items():
        for index, each in sorted(new.items()):
            yield Change(rule, source.tensors[name].file, f"{name}[{index}]", each.old, each.new, RULES[rule].why)


def _broken(subject: Subject, mended: MendedCheckpoint) -> set[str]:
    """Rules that the files of the source break, and `tie-conflict`; other rules of weights have no say in files."""
    tie = {"tie-conflict"} if subject.checkpoint.model.tied and not mended.model.tied else set[str]()
    return tie | {rule for rule, check in CHECKS.items() if rule not in READS_WEIGHTS and any(check(subject))}


def _unrepaired(findings: tuple[Finding, ...]) -> Iterator[Unrepaired]:
    for item in findings:
        if item.severity != "info":
            yield Unrepaired(item, _REASONS.get(item.rule, _NO_SOURCE))
