"""One door for every kind of source."""

from __future__ import annotations

import os
from pathlib import Path

from hermetiq.errors import HermetiqError

from .base import Checkpoint
from .documents import read_json
from .folder import FolderCheckpoint
from .hub import is_hub_id, snapshot
from .shards import PICKLES, listed


def open_checkpoint(
    path: str | Path,
    *,
    adapter: str | Path | None = None,
    revision: str | None = None,
    weights: bool = True,
) -> Checkpoint:
    """Open a model without reading its weights.

    Args:
        path: a model folder, a `.gguf` file, or the Hub id ORG/NAME where no such path exists here. A folder that
            GPTQ, AWQ or EXL2 packed is read as the weights it stands for.
        adapter: a LoRA in peft's layout, as a folder or a Hub id, to merge into it.
        revision: branch, tag or commit of a Hub id.
        weights: without, only a folder's other files are looked at, and no tensor can be loaded.

    Raises:
        HermetiqError: nothing there, an unsupported family or adapter, or the Hub says no.
        Refusal: the source breaks a rule that makes it unusable.
    """
    source = _locate(path, revision)
    if not weights:
        return FolderCheckpoint(_folder(source, "of a model"), weights=False)
    base = _open_gguf(source) if source.suffix == ".gguf" and source.is_file() else _open_folder(_model(source))
    if adapter is None:
        return base
    # Imported late, like the packed folders and the .gguf below: they bring torch along, which is slow to load.
    from .adapter import AdapterCheckpoint

    return AdapterCheckpoint(base, _folder(_locate(adapter, None), "of a LoRA"))


def _locate(path: str | Path, revision: str | None) -> Path:
    local, text = Path(path), str(path)
    if text and _exists(local):
        if revision is not None:
            raise HermetiqError("a local path has no revision", where=text, remedy="leave --revision out")
        return local
    if not is_hub_id(text):
        raise HermetiqError(
            "no such file or folder",
            where=text or "''",
            remedy="give a model folder, a .gguf file or a Hub id ORG/NAME",
        )
    return snapshot(text, revision=revision)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # Too long for a path, for instance.
        return False


def _folder(path: Path, expected: str) -> Path:
    if not path.is_dir():
        raise HermetiqError(f"not a folder {expected}", where=str(path), remedy="give the folder it lies in")
    if not os.access(path, os.R_OK | os.X_OK):
        raise HermetiqError("the folder may not be read", where=str(path), remedy="change its permissions")
    return path


def _model(path: Path) -> Path:
    """`path`, if anything of a model lies in that folder; what is missing of it the checkpoint says itself."""
    folder = _folder(path, "of a model, and not a .gguf file")
    if any(any(folder.glob(pattern)) for pattern in ("*config.json", "*.safetensors", *PICKLES)):
        return folder
    if files := [*folder.glob("*.gguf"), *folder.glob("*/*.gguf")]:
        names = listed(sorted(str(file.relative_to(folder)) for file in files))
        raise HermetiqError("a folder of GGUF files, not of a model", where=str(path), remedy=f"give one: {names}")
    raise HermetiqError("nothing of a model in this folder", where=str(path), remedy="give the folder of config.json")


def _open_folder(folder: Path) -> Checkpoint:
    document, _ = read_json(folder, "config.json")
    if "quantization_config" in (document or {}):
        from .packed import PackedCheckpoint, is_packed

        if is_packed(folder):
            return PackedCheckpoint(folder)
    return FolderCheckpoint(folder)


def _open_gguf(path: Path) -> Checkpoint:
    # Imported late: the gguf package is slow to load, and only this source needs it.
    from .gguf_source import GgufCheckpoint

    return GgufCheckpoint(path)
