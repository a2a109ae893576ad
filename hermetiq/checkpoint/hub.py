"""A model of the Hugging Face Hub as a local folder: one pinned commit, only the files an export needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import huggingface_hub

from hermetiq.errors import HermetiqError

ALLOWED: Final = (
    "*.json",
    "*.jinja",
    "*.safetensors",
    "tokenizer.model",
    "merges.txt",
    "LICENSE*",
    "README.md",
    "mergekit_config.yml",
)
IGNORED: Final = ("*/*", "consolidated*")
"""Folders of other formats, and Mistral's second copy of the weights; patterns of the Hub match across `/`."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)

# Classes of huggingface_hub.errors by name, as importing them brings an HTTP client along; subclasses before their
# parents. Nothing of the library's own text is repeated: it may quote request headers.
_MEANINGS: Final[tuple[tuple[str, str, str], ...]] = (
    ("GatedRepoError", "access to this model is restricted", "accept its terms on the Hub, then run `hf auth login`"),
    ("RevisionNotFoundError", "no such revision", "give a branch, a tag or a full commit of the model"),
    (
        "RepositoryNotFoundError",
        "no such model, or a private one",
        "check the name; for a private model `hf auth login`",
    ),
    ("DisabledRepoError", "this model has been disabled on the Hub", "choose another source"),
    ("HFValidationError", "not a valid Hub id", "give ORG/NAME"),
    (
        "LocalEntryNotFoundError",
        "not in the local cache, or not all of it, and the Hub cannot be reached",
        "connect, or unset HF_HUB_OFFLINE, and run again",
    ),
)


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form ORG/NAME."""
    return _ID.fullmatch(text) is not None


def snapshot(repo: str, *, revision: str | None = None) -> Path:
    """Download `repo`, or find it in the cache, and return the folder of the one commit that `revision` stands for.

    The folder's name is that commit. HF_HUB_OFFLINE, HF_HOME and a login are the library's own business.

    Raises:
        HermetiqError: gated, missing, invalid, or offline and not cached.
    """
    where = f"{repo}@{revision}" if revision else repo
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision, allow_patterns=list(ALLOWED), ignore_patterns=list(IGNORED)
            )
        )
    # The library's errors, and those of the HTTP client below it, share no base class.
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        for kind, what, remedy in _MEANINGS:
            if kind in kinds:
                raise HermetiqError(what, where=where, remedy=remedy) from None
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise HermetiqError(f"the download failed: {reason}", where=where, remedy="run again") from None
