"""Safetensors files, one or many: what they hold, before anything is read, and then one tensor at a time.

A tensor is a window on the mapped file, and each read maps anew: once the tensor is dropped its pages are too, so
walking through a checkpoint of any size needs the memory of its largest tensor. Format: the README of safetensors;
the index is transformers' `model.safetensors.index.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError, safe_open

from hermetiq.errors import Finding, Refusal

from .base import TensorInfo
from .documents import POINTER, POINTER_REPAIR, Read, incomplete, link_out, obstacle, read_json, stays_inside

if TYPE_CHECKING:
    from torch import Tensor

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")

_NAMED = 10
_LIBRARY_SAYS = "Error while deserializing header: "
_PICKLE_REPAIR = "Save the weights as safetensors with the tool that wrote them; hermetiq never unpickles a download."


def read_tensors(folder: Path) -> Read[dict[str, TensorInfo]]:
    """Every stored tensor of a model folder, in file order, from the headers alone."""
    index, findings = read_json(folder, INDEX)
    if findings:
        return {}, findings
    if index is None:
        single = folder / SINGLE
        stored = single.exists() or single.is_symlink()
        return read_header(folder, SINGLE) if stored else ({}, (_no_weights(folder),))
    located, findings = _locations(folder, index)
    if findings:
        return {}, findings
    tensors: dict[str, TensorInfo] = {}
    surplus = list[str]()
    for file in sorted(set(located.values())):
        header, wrong = read_header(folder, file)
        findings += wrong
        for name, info in header.items():
            if located.get(name) == file:
                tensors[name] = info
            else:
                surplus.append(f"{name} in {file}")
    if not findings:
        findings = _disagreements([name for name in located if name not in tensors], surplus)
    return tensors, findings


def read_every_file(folder: Path) -> Read[dict[str, TensorInfo]]:
    """Every tensor of every safetensors file in the folder, by the files' names, whatever an index says."""
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        return {}, (_no_weights(folder),)
    tensors: dict[str, TensorInfo] = {}
    findings: tuple[Finding, ...] = ()
    for file in files:
        header, wrong = read_header(folder, file)
        findings += wrong
        if twice := [f"{name}, also in {tensors[name].file}" for name in header if name in tensors]:
            findings += (incomplete(file, found=listed(twice), expected="each tensor once"),)
        tensors |= header
    return ({}, findings) if findings else (tensors, ())


def read_header(folder: Path, file: str) -> Read[dict[str, TensorInfo]]:
    """The tensors of one safetensors file, in the order of their bytes. The file's size is checked against them."""
    path = folder / file
    if not stays_inside(folder, path):
        return {}, (link_out(file),)
    try:
        if found := obstacle(path):
            return {}, (incomplete(file, found=found, expected="a whole safetensors file"),)
        with path.open("rb") as opened:
            start = opened.read(len(POINTER))
        if start == POINTER.encode():
            return {}, (incomplete(file, found="a Git LFS pointer", expected="the weights", repair=POINTER_REPAIR),)
        # Headers are read without torch, which takes longer to import than they all take to read.
        with safe_open(path, framework="np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
            return {
                name: TensorInfo(shape=tuple(each.get_shape()), dtype=str(each.get_dtype()), file=file)
                for name, each in slices.items()
            }, ()
    except (OSError, SafetensorError) as error:
        return {}, (_unreadable(file, error),)


def load_tensor(folder: Path, name: str, info: TensorInfo) -> Tensor:
    """The named tensor, as a window on its mapped file.

    Raises:
        Refusal: `source-incomplete`, the file has changed or gone since its header was read.
    """
    try:
        with safe_open(folder / info.file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor
    except (OSError, SafetensorError) as error:
        raise Refusal(_unreadable(info.file, error)) from error


def listed(names: Iterable[str]) -> str:
    """The first ten of `names`, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more


def _locations(folder: Path, index: Mapping[str, Any]) -> Read[dict[str, str]]:
    """File by tensor name as the index states them, if all of it can be trusted."""
    located = index.get("weight_map")
    if not isinstance(located, dict) or not all(isinstance(file, str) for file in located.values()):
        wrong = incomplete(INDEX, field="weight_map", found=type(located).__name__, expected="file names by tensor")
        return {}, (wrong,)
    files = sorted(set(located.values()))
    if pickled := [file for file in files if not file.endswith(".safetensors")]:
        return {}, (
            incomplete(
                INDEX,
                field="weight_map",
                found=listed(map(repr, pickled)),
                expected="safetensors",
                repair=_PICKLE_REPAIR,
            ),
        )
    if outside := [file for file in files if not _is_plain(file)]:
        wrong = incomplete(
            INDEX, field="weight_map", found=listed(map(repr, outside)), expected="names of files in the folder"
        )
        return {}, (wrong,)
    if missing := [file for file in files if not (folder / file).exists()]:
        return {}, tuple(
            incomplete(file, found="no such file", expected=f"a shard that {INDEX} names") for file in missing
        )
    if SINGLE not in files and (folder / SINGLE).exists():
        wrong = incomplete(
            SINGLE,
            found=f"weights that {INDEX} does not name",
            expected="one set of weights",
            repair=f"Remove {SINGLE} or {INDEX} with its shards, whichever is stale.",
        )
        return {}, (wrong,)
    return located, ()


def _is_plain(file: str) -> bool:
    return len(file) < 256 and file.isprintable() and not set(file) & {"/", "\\", ":"}


def _disagreements(missing: list[str], surplus: list[str]) -> tuple[Finding, ...]:
    sides = (
        (missing, "not in their shards", "every tensor that the index names"),
        (surplus, "not named by the index", "every tensor of the shards"),
    )
    return tuple(
        incomplete(INDEX, found=f"{what}: {listed(names)}", expected=expected)
        for names, what, expected in sides
        if names
    )


def _no_weights(folder: Path) -> Finding:
    if pickled := sorted(path.name for pattern in PICKLES for path in folder.glob(pattern)):
        return incomplete(
            pickled[0], found=f"pickled weights only: {listed(pickled)}", expected="safetensors", repair=_PICKLE_REPAIR
        )
    stray = sorted(path.name for path in folder.glob("*.safetensors"))
    found = f"only {listed(stray)}" if stray else "no weights"
    return incomplete(SINGLE, found=found, expected=f"{SINGLE}, or shards with {INDEX}")


def _unreadable(file: str, error: Exception) -> Finding:
    found = (error.strerror if isinstance(error, OSError) else None) or str(error).removeprefix(_LIBRARY_SAYS)
    if "not fully covered" in found:
        found = "another length than its header states, as of a file that is cut off"
    return incomplete(file, found=found, expected="a whole safetensors file")
