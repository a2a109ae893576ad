"""An evaluation as a straight line: the source, then each artifact, through the same tasks.

Every model is read by hermetiq's own readers, with its own tokenizer, into transformers' module: so formats compare on
their weights alone, without one runtime's kernels against another's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hermetiq.chat.contract import ChatContract
from hermetiq.checkpoint import open_checkpoint
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.errors import HermetiqError
from hermetiq.machine import accelerator, give_back_memory
from hermetiq.manifest import Manifest, library_versions
from hermetiq.progress import Ticker, part, silent
from hermetiq.verify import native
from hermetiq.verify.examined import Stored, bytes_found, on_disk
from hermetiq.verify.source import require_source

from .results import Evaluated, Evaluation, Score
from .tokenizer import fast_tokenizer

if TYPE_CHECKING:
    from .harness import Suite

PACKAGES: Final = ("lm_eval", "datasets", "accelerate")


def evaluate(
    folder: Path,
    source: Checkpoint,
    tasks: Sequence[str],
    *,
    tasks_path: Path | None = None,
    limit: int | None = None,
    allow_code: bool = False,
    device: str = "auto",
    tick: Ticker = silent,
) -> Evaluation:
    """Run benchmarks on the source and on every artifact of an export, and write `folder/hermetiq-eval.json`.

    The file is written after each artifact, so that what was measured before a cut is kept; it takes the place of that
    of an earlier run.

    Args:
        folder: what `export` wrote.
        source: the checkpoint it was made from, with the same adapter.
        tasks: names of tasks, groups or tags of the harness, or of `tasks_path`.
        tasks_path: folder of task files of one's own.
        limit: only so many questions of each task, the first.
        allow_code: the files of `tasks_path` may run code.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        HermetiqError: the harness is not installed; no manifest, or `source` is not the one it names; an artifact is
            missing or was changed; a task cannot be had, or would run code; no model fits into memory.
        Refusal: a tensor cannot be read.
    """
    _require_harness()
    from .harness import Suite, version

    if limit is not None and limit < 1:
        raise HermetiqError(f"{limit} questions", where="--limit", remedy="give one or more")
    manifest = Manifest.read(folder)
    require_source(folder, manifest, source)
    stored = [on_disk(folder, manifest, artifact) for artifact in manifest.artifacts]
    for item in stored:
        _require_unchanged(item)
    target = accelerator(device)
    tick("reading the tasks", 0.0)
    suite = Suite(tasks, folder=tasks_path, allow_code=allow_code)
    if lacking := native.memory_lacking(source):
        raise HermetiqError(f"the source does not fit into memory: {lacking}", where=str(source.path))
    asked = _Asked(suite, manifest.source.contract, source.tokenizer.add_bos, limit, target)
    spans = len(stored) + 1
    found = Evaluation(
        tasks=tuple(suite.names),
        fingerprint=manifest.source.fingerprint,
        source=asked.scores(source, "the source", part(tick, 0.0, 1 / spans)),
        limit=limit,
        harness=version(),
        libraries=library_versions(),
    )
    for number, item in enumerate(stored, start=1):
        artifact, checkpoint = item.artifact, open_checkpoint(item.path)
        if lacking := native.memory_lacking(checkpoint):
            found = replace(found, notes=(*found.notes, f"{artifact.file} was not evaluated: {lacking}"))
            continue
        scores = asked.scores(checkpoint, artifact.file, part(tick, number / spans, (number + 1) / spans))
        evaluated = Evaluated(artifact.file, artifact.sha256, scores)
        found = replace(found, artifacts=(*found.artifacts, evaluated))
        found.write(folder)
    if not found.artifacts:
        raise HermetiqError("; ".join(found.notes) or "no artifacts", where=str(folder))
    found.write(folder)
    return found


@dataclass(frozen=True)
class _Asked:
    """What every model is asked, in the same way."""

    suite: Suite
    contract: ChatContract
    """Of the source."""
    add_bos: bool
    """As the source's tokenizer does: of an artifact whose template prints BOS, the tokenizer adds none."""
    limit: int | None
    device: str

    def scores(self, checkpoint: Checkpoint, name: str, tick: Ticker) -> tuple[Score, ...]:
        """What one model scores; its memory is free again afterwards."""
        tick(f"loading {name}", 0.0)
        model = native.model(checkpoint).to(self.device)
        # A chat ends with a stop of the contract, whatever single token the harness takes for the end.
        model.generation_config.eos_token_id = list(self.contract.stop_ids)
        tokenizer = fast_tokenizer(checkpoint.tokenizer, self.contract, add_bos=self.add_bos)
        try:
            return self.suite.scores(
                model, tokenizer, add_bos=self.add_bos, limit=self.limit,
                tick=lambda share: tick(f"evaluating {name}", share),
            )  # fmt: skip
        finally:
            del model
            give_back_memory()


def _require_harness() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise HermetiqError(
            f"lm-evaluation-harness is an extra of hermetiq; not installed: {', '.join(missing)}",
            remedy='pip install "hermetiq[eval]"',
        )


def _require_unchanged(item: Stored) -> None:
    digest, _ = bytes_found(item)
    if digest != item.artifact.sha256:
        raise HermetiqError("its bytes are not those that were exported", where=str(item.path), remedy="export again")
