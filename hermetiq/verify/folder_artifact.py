"""A GPTQ, AWQ or EXL2 folder before the walk: its tokenizer as transformers loads it, and answers by its own weights.

No runtime is needed: the packages that read these formats want environments of their own, and are asked on request.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from hermetiq.chat.contract import ChatContract
from hermetiq.checkpoint.tokenizer_guard import panics_refused
from hermetiq.errors import HermetiqError
from hermetiq.progress import Ticker
from hermetiq.verification import Check

from . import native, parity
from .examined import Examined, Stored, bytes_found, opened, told
from .judge import Findings
from .reference import Reference

READER = "transformers"


def examine(stored: Stored, asked: Reference, tick: Ticker) -> Examined:
    """Bytes, contract, tokens by transformers, and the answers to the smoke prompts."""
    what = f"reading {stored.path.name}"
    tick(what, 0.0)
    digest, found = bytes_found(stored)
    found += _unlisted(stored)
    checkpoint, contract, differences = opened(stored, asked.contract)
    found += differences
    if checkpoint is None or contract is None:
        return Examined(stored, digest, checkpoint, found)
    found += _stops(asked.contract, contract) + _tokenizer(stored.path, asked)
    tick(what, 0.1)
    if lacking := native.memory_note(checkpoint):
        unasked = Findings(figures={"smoke_unasked": len(asked.smoke)}, notes=(f"{stored.path.name}: {lacking}",))
        return Examined(stored, digest, checkpoint, found + unasked)
    try:
        answers = native.answers(checkpoint, asked, lambda share: tick(what, 0.1 + 0.9 * share))
    except HermetiqError as error:
        failure = Findings((Check("runtime", False, "failed", "runs", told(error, stored.path)),))
        return Examined(stored, digest, checkpoint, found + failure)
    return Examined(stored, digest, checkpoint, found, answers)


def _unlisted(stored: Stored) -> Findings:
    """A note on files that the export did not write: they may be read, and nothing was proven about them."""
    found = sorted(path for path in stored.path.rglob("*") if not path.is_dir() or path.is_symlink())
    names = [str(path.relative_to(stored.path)) for path in found if path not in set(stored.files.values())]
    if not names:
        return Findings()
    return Findings(notes=(f"{stored.path.name} holds files that the export did not write: {', '.join(names)}",))


def _stops(source: ChatContract, artifact: ChatContract) -> Findings:
    """Unlike a GGUF, a folder has a place for every stop (U38)."""
    same = source.stop_ids == artifact.stop_ids
    reason = "" if same else "the folder's stop list is not the source's"
    return Findings((Check("stops", same, str(list(artifact.stop_ids)), str(list(source.stop_ids)), reason),))


def _tokenizer(folder: Path, asked: Reference) -> Findings:
    """The ids that transformers makes with the artifact's files, which is what GPU runtimes use (U17, U19, U39)."""
    sample = asked.sample
    try:
        tokenizer = _load(folder)
        with panics_refused():
            tokens = [_ids(tokenizer, encoding.text) for encoding in asked.texts]
            plain, special = _ids(tokenizer, sample), _ids(tokenizer, sample, add_special=True)
    except Exception as error:  # A loader for any tokenizer there is fails in as many ways.
        line = (str(error).splitlines() or [""])[0].replace(f"{folder}", folder.name)[:200]
        reason = f"{READER} does not load the tokenizer: {type(error).__name__}: {line}"
        return Findings((Check("tokens", False, "unreadable", 0, reason),))
    checks = (
        parity.check_tokens(asked.texts, tokens, reader=READER),
        parity.check_bos(asked.contract, plain, special, reader=READER),
    )
    return Findings(checks, {"parity_texts": len(asked.texts)})


def _load(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _ids(tokenizer: Any, text: str, *, add_special: bool = False) -> Sequence[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special)
    return ids
