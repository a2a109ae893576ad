"""What makes an export resumable: after each block, all that was made of it lies on disk, whole or not at all.

A block is two files, `block-00003.safetensors` and the record `block-00003.json` that is renamed into place last. The
record holds the SHA-256 of the tensors, its own, and that of the identity (source, corpus, specs), so a block that was
cut short, changed, or left by another export is not taken for one that is done. Nothing in here is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hermetiq.errors import HermetiqError
from hermetiq.formats.output import write_files
from hermetiq.manifest import sha256_of

IDENTITY: Final = "identity.json"


@dataclass(frozen=True)
class _Record:
    """What a block's `.json` says of its `.safetensors`."""

    keys: Mapping[str, Mapping[str, str]]
    """By track: under which key of the file each tensor lies, by the tensor's name."""
    notes: Mapping[str, Any]


class Journal:
    """The work folder of one export: its finished blocks, in order, from the first."""

    def __init__(self, folder: Path, identity: str, records: list[_Record], distrusted: tuple[str, ...]) -> None:
        self._folder, self._identity, self._records = folder, identity, records
        self.distrusted = distrusted
        """One line for each block that was recorded as done and will be made again, with the reason."""

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, str], *, resume: bool) -> Journal:
        """Begin a journal, or continue the one that an interrupted export left.

        Every finished block is read and held against its SHA-256. With nothing there, `resume` begins as well: the
        export may have been stopped before its first block.

        Args:
            folder: made if it does not exist.
            identity: all that the result depends on: fingerprints, specs, settings, versions.

        Raises:
            HermetiqError: a link or a file in the folder's place; an unfinished export is there and `resume` was not
                asked; it is an export of something else.
        """
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise HermetiqError("the work folder's place is taken by a link or a file", where=str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        digest = _digest(identity)
        if not (folder / IDENTITY).exists():
            _write_json(folder / IDENTITY, dict(identity))
        elif not resume:
            raise HermetiqError(
                "an unfinished export lies here",
                where=str(folder),
                remedy="--resume goes on, --overwrite drops it",
            )
        _compare(folder / IDENTITY, identity)
        records, distrusted = _finished(folder, digest)
        return cls(folder, digest, records, distrusted)

    @property
    def blocks(self) -> int:
        """How many blocks are finished, for all tracks: those below this number."""
        return len(self._records)

    def write(self, index: int, tensors: Mapping[str, Mapping[str, Tensor]], notes: Mapping[str, Any]) -> None:
        """Put a finished block on disk; it counts as done when this returns, and not before.

        Args:
            index: of the block; blocks are written in order.
            tensors: by track and name.
            notes: what else is to be remembered, as JSON knows it.
        """
        if index != self.blocks:
            raise ValueError(f"block {index} cannot be written: {self.blocks} comes next")
        # As they will be after a restart: keys are text, tuples lists.
        remembered = json.loads(json.dumps(dict(notes)))
        keys: dict[str, dict[str, str]] = {}
        stored: dict[str, Tensor] = {}
        for track, named in tensors.items():
            keys[track] = {name: str(len(stored) + number) for number, name in enumerate(named)}
            # safetensors takes no views and no two names for one tensor.
            copies = (value.detach().cpu().clone(memory_format=torch.contiguous_format) for value in named.values())
            stored.update(zip(keys[track].values(), copies, strict=True))
        path = _tensors_path(self._folder, index)
        partial = path.with_name(f"{path.name}.partial")
        save_file(stored, partial)
        _flush(partial)
        sha256 = sha256_of(partial)
        partial.replace(path)
        record = {"identity": self._identity, "sha256": sha256, "keys": keys, "notes": remembered}
        _write_json(_record_path(self._folder, index), {"record": record, "sha256": _digest(record)})
        self._records.append(_Record(keys, remembered))

    def read(self, index: int, track: str) -> dict[str, Tensor]:
        """All tensors of one block and track, by name, on the CPU."""
        with safe_open(_tensors_path(self._folder, index), "pt") as file:
            return {name: file.get_tensor(key) for name, key in self._records[index].keys[track].items()}

    def load(self, track: str, name: str) -> Tensor:
        """One tensor of a track, whichever block it is of.

        Raises:
            KeyError: no finished block has it.
        """
        for index, record in enumerate(self._records):
            if (key := record.keys.get(track, {}).get(name)) is not None:
                with safe_open(_tensors_path(self._folder, index), "pt") as file:
                    tensor: Tensor = file.get_tensor(key)
                    return tensor
        raise KeyError(f"{name} of {track}")

    def names(self, track: str) -> list[str]:
        """Every tensor of a track, in the order in which they were written."""
        return [name for record in self._records for name in record.keys.get(track, {})]

    def notes(self, index: int) -> Mapping[str, Any]:
        """What was written with the block, as JSON gives it back."""
        return self._records[index].notes

    def remove(self) -> None:
        """Delete the work folder: the export is finished, or to be begun anew."""
        shutil.rmtree(self._folder)


def _finished(folder: Path, identity: str) -> tuple[list[_Record], tuple[str, ...]]:
    """Records of the leading blocks that are whole, and a line for every other that claims to be.

    Whatever lies behind is deleted, so that it cannot pass for a later block of this run.
    """
    records: list[_Record] = []
    broken = ""
    while not broken and _record_path(folder, len(records)).exists():
        try:
            records.append(_checked(folder, len(records), identity))
        except (OSError, ValueError, KeyError, TypeError) as error:
            broken = str(error) or type(error).__name__
    kept = {place(folder, index) for index in range(len(records)) for place in (_record_path, _tensors_path)}
    # A block cut short may have left files of any name: safetensors writes under names of its own.
    stale = [path for path in sorted(folder.iterdir()) if path not in kept | {folder / IDENTITY}]
    claims = [path for path in stale if path.suffix == ".json"]
    first = _record_path(folder, len(records))
    distrusted = [f"{path.stem}: {broken if path == first else 'follows a block that is not done'}" for path in claims]
    for path in stale:
        path.unlink()
    return records, tuple(distrusted)


def _checked(folder: Path, index: int, identity: str) -> _Record:
    """The record of a block, once all its digests have been found right."""
    document = json.loads(_record_path(folder, index).read_bytes())
    record = document["record"]
    if document["sha256"] != _digest(record):
        raise ValueError("its record was changed")
    if record["identity"] != identity:
        raise ValueError("it belongs to another export")
    if record["sha256"] != sha256_of(_tensors_path(folder, index)):
        raise ValueError("its tensors are not those that were recorded")
    return _Record(record["keys"], record["notes"])


def _compare(path: Path, identity: Mapping[str, str]) -> None:
    """Refuse to continue anything but the same export."""
    try:
        before = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise HermetiqError(
            f"cannot be read: {error}", where=str(path), remedy="--overwrite begins the export anew"
        ) from None
    if before == dict(identity):
        return
    told = before if isinstance(before, dict) else {}
    changed = [
        f"{key}: {told.get(key, '(none)')} -> {identity.get(key, '(none)')}"
        for key in sorted({*told, *identity})
        if told.get(key) != identity.get(key)
    ]
    raise HermetiqError(
        f"the export that was begun is another: {'; '.join(changed)}",
        where=str(path.parent),
        remedy="ask for the same to continue it; --overwrite begins anew",
    )


def _record_path(folder: Path, index: int) -> Path:
    return folder / f"block-{index:05d}.json"


def _tensors_path(folder: Path, index: int) -> Path:
    return folder / f"block-{index:05d}.safetensors"


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    """In one step: readers see the old file or the new one."""
    write_files({path: (json.dumps(document, indent=1) + "\n").encode()})


def _flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
