"""The recipes of an export: which runtimes read which artifact, and what each is told."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from hermetiq.chat.contract import ChatContract
from hermetiq.errors import HermetiqError
from hermetiq.formats.output import write_files
from hermetiq.manifest import Artifact, Manifest

from . import launch, lm_studio, ollama, scripts

RuntimeName = Literal["ollama", "llama.cpp", "lm-studio", "vllm", "transformers", "exllamav2"]


@dataclass(frozen=True)
class Recipe:
    """How one runtime is started on one artifact, or why there is no recipe."""

    runtime: RuntimeName
    artifact: str
    """`Artifact.file`."""
    name: str
    """A file name for the text."""
    text: str
    refused: str = ""
    """Why `text` is empty."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Kind:
    """One runtime: the formats it reads, how its file is called, and what is written into it."""

    runtime: RuntimeName
    formats: tuple[str, ...]
    file: str
    write: launch.Writer


_KINDS = (
    _Kind("ollama", ("gguf",), "Modelfile.{name}", ollama.modelfile),
    _Kind("llama.cpp", ("gguf",), "{name}.llama-server.sh", launch.llama_cpp),
    _Kind("lm-studio", ("gguf",), "{name}.preset.json", lm_studio.preset),
    _Kind("vllm", ("gptq", "awq"), "{name}.vllm.sh", launch.vllm),
    _Kind("transformers", ("gptq", "awq"), "{name}.transformers.py", scripts.transformers),
    _Kind("exllamav2", ("exl2",), "{name}.exllamav2.py", scripts.exllamav2),
)


def recipes(manifest: Manifest, place: str = "", *, runtime: str | None = None) -> tuple[Recipe, ...]:
    """The recipe of every runtime for every artifact that it reads, in the order of the artifacts.

    Args:
        manifest: of the export.
        place: the export's folder, seen from where the recipes are used; empty where they lie in it.
        runtime: only this one.

    Raises:
        HermetiqError: a base model; no such runtime; or it was asked for by name, and reads no artifact here or has no
            recipe.
    """
    names = [kind.runtime for kind in _KINDS]
    if runtime is not None and runtime not in names:
        raise HermetiqError(f"no recipe for {runtime!r}", remedy="runtimes: " + ", ".join(names))
    if not manifest.source.contract.is_chat:
        raise HermetiqError("a base model has no chat template, so no recipe for chats", where=manifest.source.name)
    found = tuple(
        _recipe(kind, manifest.source.contract, artifact, place)
        for artifact in manifest.artifacts
        for kind in _KINDS
        if artifact.spec.partition(":")[0] in kind.formats and runtime in (None, kind.runtime)
    )
    if runtime is not None and not any(recipe.text for recipe in found):
        what = found[0].refused if found else f"no artifact here that {runtime} reads"
        raise HermetiqError(what, where=found[0].artifact if found else "", remedy="choose another runtime")
    return found


def save(found: tuple[Recipe, ...], folder: Path) -> None:
    """Write the recipes into `folder`, all or none; those that were refused have no file.

    Raises:
        HermetiqError: a file of that name is there, or the folder cannot be written.
    """
    contents = {folder / recipe.name: recipe.text.encode() for recipe in found if recipe.text}
    for path in contents:
        if path.exists():
            raise HermetiqError("there is a file already", where=str(path), remedy="choose a new folder")
    write_files(contents)


def seen_from(folder: Path, place: Path | None) -> str:
    """The path of `folder` as a recipe in `place` names it; as it was given where the recipe is only printed."""
    return str(folder) if place is None else os.path.relpath(folder.resolve(), place.resolve())


def _recipe(kind: _Kind, contract: ChatContract, artifact: Artifact, place: str) -> Recipe:
    path = str(PurePosixPath(place, artifact.file))
    # `./` where nothing stands before: no name is then taken for an option or a name of the Hub.
    path = path if path.startswith(("/", "../")) else f"./{path}"
    name = kind.file.format(name=PurePosixPath(artifact.file).name.removesuffix(".gguf"))
    try:
        return Recipe(kind.runtime, artifact.file, name, kind.write(contract, path))
    except HermetiqError as error:
        return Recipe(kind.runtime, artifact.file, name, "", refused=str(error))
