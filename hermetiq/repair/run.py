"""`hermetiq repair`: from a checkpoint to a copy whose files agree, as one straight line.

The copy is written beside its place, looked at as `inspect` looks at any model, and only then put there. So what the
account calls repaired has been seen repaired, and what is still wrong is told with the reason why it stays.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from hermetiq.chat.inspect import inspect
from hermetiq.checkpoint import Checkpoint
from hermetiq.errors import Finding, HermetiqError
from hermetiq.formats.output import write_files
from hermetiq.progress import Ticker, silent
from hermetiq.repair.change import Change
from hermetiq.repair.mend import mend
from hermetiq.repair.rows import InitTags
from hermetiq.repair.weights import merging, write_weights

_NO_SOURCE: Final = "Nothing in the folder says what would be right."
_REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "weight-nan": "The numbers that stood there are in no file of the folder.",
        "tag-untrained": "Only training, or a parent's row (--init-tags parent:PATH), teaches a model a tag; the mean "
        "or a copy is where training can start.",
        "vocab-overflow": "A chat or a merge needs the token, and no row of it was ever trained; --init-tags gives it "
        "one to start from.",
        "template-tokens": "A new token would have a row that no training has seen.",
        "duplicate-token": "Which of the ids the model was trained with is in no file.",
        "pretokenizer-unknown": "Another pre-tokenizer would cut text in another way than the training did.",
        "no-delta": "What the training changed is in no file.",
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


def repair(
    path: str,
    folder: Path,
    *,
    adapter: str | None = None,
    init_tags: InitTags | None = None,
    chat_template: str | None = None,
    base_model: bool = False,
    tick: Ticker = silent,
) -> Repair:
    """Write a copy of the model at `path` whose files agree with its chat contract. The source is only read.

    What cannot be repaired but leaves a model that loads (NaN, an untrained tag) is in `Repair.unrepaired`, and the
    copy is written all the same: it is no worse than its source. Repairing a repaired folder changes nothing.

    Args:
        path: folder of safetensors, or Hub id.
        folder: absent or empty; all of it appears at once.
        adapter: LoRA folder, merged into the weights of the copy.
        init_tags: where untrained tags get a row from; they keep theirs where None.
        chat_template: text of the template, in the place of any that the model has; its own where None.
        base_model: there is no template, and that is right.

    Raises:
        HermetiqError: `folder` is no place for it, or `init_tags` has no row to give.
        Refusal: no chat model can be made of the source: it does not open, is quantized, has no contract, or lost
            its head.
    """
    mended = mend(path, adapter=adapter, init_tags=init_tags, chat_template=chat_template, base_model=base_model)
    checkpoint = mended.checkpoint
    _require_room(folder, checkpoint)
    folder = folder.resolve()
    staged = folder.with_name(f"{folder.name}.partial")
    _make(staged)
    try:
        write_files({staged / name: data for name, data in (checkpoint.files or {}).items()})
        write_weights(staged, checkpoint, tick)
        findings = inspect(str(staged), base_model=base_model).findings
        left_out = sorted({each.name for each in checkpoint.path.iterdir()} - {each.name for each in staged.iterdir()})
        staged.replace(folder)
    except BaseException:
        shutil.rmtree(staged)
        raise
    changes = (*mended.changes, *merging(checkpoint))
    return Repair(path, str(folder), changes, tuple(_unrepaired(findings)), tuple(left_out))


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


def _unrepaired(findings: tuple[Finding, ...]) -> Iterator[Unrepaired]:
    for item in findings:
        if item.severity != "info":
            yield Unrepaired(item, _REASONS.get(item.rule, _NO_SOURCE))
