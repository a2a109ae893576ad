"""What a repair makes of a model, before anything is written: a checkpoint whose parts agree, and every change.

An export repairs with this alone, in memory. `hermetiq repair` writes down what comes out of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from hermetiq.chat.checks import CHECKS, READS_WEIGHTS
from hermetiq.chat.contract import ChatContract
from hermetiq.chat.subject import Subject, examine
from hermetiq.chat.weight_checks import tie_conflict
from hermetiq.checkpoint import Checkpoint, open_checkpoint
from hermetiq.checkpoint.documents import DOCUMENTS, TEMPLATE
from hermetiq.checkpoint.shards import listed
from hermetiq.companions import VOCABULARIES
from hermetiq.errors import HermetiqError, Refusal
from hermetiq.repair.change import Change, file_changes
from hermetiq.repair.files import repaired_files, stored_files
from hermetiq.repair.head import Reading, read_through_embedding
from hermetiq.repair.mended import MendedCheckpoint
from hermetiq.repair.rows import InitTags, NewRows, missing_rows, started_rows
from hermetiq.repair.vocabulary import files_without, unneeded
from hermetiq.rules import RULES, finding

_HEAD: Final = "head-tie"


@dataclass(frozen=True)
class Mended:
    """A repaired model in memory, and what is other in it than in its source."""

    checkpoint: MendedCheckpoint
    changes: tuple[Change, ...]


def mend(
    path: str,
    *,
    adapter: str | None = None,
    init_tags: InitTags | None = None,
    chat_template: str | None = None,
    base_model: bool = False,
) -> Mended:
    """Repair the model at `path` in memory; what cannot be repaired stays for the rules to find.

    Args:
        path: folder of safetensors, or Hub id.
        adapter: LoRA folder, merged at load.
        init_tags: where untrained tags get a row from; they keep theirs where None.
        chat_template: text of the template, in the place of any that the model has; its own where None.
        base_model: there is no template, and that is right.

    Raises:
        HermetiqError: `path` is a .gguf, a `base_model` has a template, or `init_tags` has no row to give.
        Refusal: no chat model can be made of the source: it does not open, is quantized, has no contract, or lost
            its head.
    """
    source = _opened(path, adapter)
    spoken = _spoken(source, chat_template)
    subject = examine(spoken, base_model=base_model)
    contract = subject.contract
    if contract is None:
        raise Refusal(*(item for item in subject.noticed if item.severity == "error"))
    if chat_template is not None:
        # What the source breaks without it is put down to the source.
        subject = replace(subject, noticed=examine(source, base_model=base_model).noticed)
    reading = _head(source, contract)
    tied = source.model.tied and not any(tie_conflict(subject))
    dropped = unneeded(source, contract)
    whole = _without(source, tied, dropped, chat_template)
    if dropped:
        # A padding token may be among them, and the contract names it.
        subject = replace(examine(whole, base_model=base_model), noticed=subject.noticed)
    added = missing_rows(whole) if init_tags else {}
    grown = MendedCheckpoint(whole, _values(added), tied=tied)
    started = started_rows(grown, replace(subject, checkpoint=grown), init_tags) if init_tags else {}
    rows = {name: {**added.get(name, {}), **started.get(name, {})} for name in {**added, **started}}
    mended = MendedCheckpoint(whole, _values(rows), tied=tied)
    restated = repaired_files(mended, replace(subject.contract or contract, rows=mended.model.rows))
    stored = stored_files(source, dict.fromkeys((*DOCUMENTS, TEMPLATE, *VOCABULARIES, *restated)))
    changes, files = file_changes(stored, restated, _broken(replace(subject, checkpoint=source), tied=tied))
    if reading:
        changes = tuple(
            replace(each, why=f"No head is stored: {reading}.") if each.rule == _HEAD else each for each in changes
        )
    checkpoint = MendedCheckpoint(source, _values(rows), tied=tied, files=files)
    return Mended(checkpoint, (*changes, *_growth(source, added), *_starts(source, started)))


def _opened(path: str, adapter: str | None) -> Checkpoint:
    source = open_checkpoint(path, adapter=adapter)
    if not source.path.is_dir():
        remedy = "give the folder that it was converted from"
        raise HermetiqError("a .gguf has none of the files that a repair mends", where=path, remedy=remedy)
    if quantized := [item for item in source.findings if item.rule == "source-quantized"]:
        raise Refusal(*quantized)
    return source


def _spoken(source: Checkpoint, template: str | None) -> Checkpoint:
    """The source as it is with the template that is given."""
    return source if template is None else MendedCheckpoint(source, {}, tied=source.model.tied, template=template)


def _head(source: Checkpoint, contract: ChatContract) -> Reading | None:
    """How the weights read without a head of their own, where opening found none that should be there.

    Raises:
        Refusal: `head-tie`, the embedding is not the head, so that the head is lost.
    """
    if all(item.rule != _HEAD for item in source.findings):
        return None
    reading = read_through_embedding(source, contract)
    if not reading.is_head:
        raise Refusal(
            finding(
                _HEAD,
                file="config.json",
                field="tie_word_embeddings",
                found=f"false, and no head is stored; {reading}",
                expected="the head that the model was trained with",
                repair="The head was lost, and no repair can make it up: download or merge again.",
            )
        )
    return reading


def _without(source: Checkpoint, tied: bool, dropped: Mapping[int, str], template: str | None) -> MendedCheckpoint:
    """The source with its tie flag set right, the template that is given, and no tokens that nobody needs."""
    files = files_without(source, frozenset(dropped.values())) if dropped else None
    return MendedCheckpoint(source, {}, tied=tied, files=files, template=template)


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


def _broken(subject: Subject, *, tied: bool) -> set[str]:
    """Rules that the files of the source break, and `tie-conflict`; other rules of weights have no say in files."""
    tie = {"tie-conflict"} if subject.checkpoint.model.tied and not tied else set[str]()
    found = {item.rule for item in subject.noticed if item.severity == "error"}
    return tie | found | {rule for rule, check in CHECKS.items() if rule not in READS_WEIGHTS and any(check(subject))}
