"""EleutherAI's lm-evaluation-harness, as far as it is asked here; imported only where `hermetiq eval` needs it.

The harness reads data sets and computes scores. It gets a model that is loaded already and a tokenizer, so it opens no
checkpoint; the templates of its task files are rendered in a sandbox.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partialmethod
from pathlib import Path
from typing import Any, Final

import datasets
import lm_eval
import lm_eval.api.metrics  # Fills the registry of metrics.
import lm_eval.utils
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from lm_eval.api.registry import metric_registry
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from hermetiq.errors import HermetiqError

from .results import Score
from .task_files import asks_for_remote_code, mentioned, require_data

BATCH: Final = 4
"""Questions computed side by side, the same for every model: rounding depends on it."""
_STDERR: Final = "_stderr"


def version() -> str:
    return str(lm_eval.__version__)


class Suite:
    """Tasks that exist, and whose data is there."""

    def __init__(self, tasks: Sequence[str], *, folder: Path | None, allow_code: bool) -> None:
        """Find the tasks and read their data, which may be fetched from the Hub.

        Args:
            tasks: names of tasks, groups or tags.
            folder: of task files of one's own, in front of the harness's.
            allow_code: those files may run code.

        Raises:
            HermetiqError: no task of a name, a task that would run code without leave, or data that cannot be had.
        """
        self.names = list(dict.fromkeys(tasks))
        if not self.names:
            raise HermetiqError("no task", where="--tasks", remedy="name one, `lm-eval ls tasks` lists them")
        if folder and not allow_code:
            require_data(folder, metric_registry)
        with _tamed():
            self._manager = _manager(self.names, folder)
            loaded = _tried(lambda: self._manager.load(self.names))
        for name in loaded["tasks"]:
            entry = self._manager.task_index.get(name)
            if entry and asks_for_remote_code(entry.cfg):
                raise HermetiqError("the task wants code of its data set's repo to be run", where=name)

    def scores(
        self, model: Any, tokenizer: Any, *, add_bos: bool, limit: int | None, tick: Callable[[float], None]
    ) -> tuple[Score, ...]:
        """What a model of transformers scores, in the harness's own order.

        Args:
            tokenizer: a fast tokenizer of transformers.
            add_bos: BOS stands in front of every question.
            limit: only so many questions of each task, the first.
            tick: told the share that was answered.

        Raises:
            HermetiqError: the harness fails, for want of memory for instance.
        """
        with _tamed():
            asked = _Model(model, tokenizer, add_bos=add_bos, tick=tick)
            found = _tried(
                lambda: lm_eval.simple_evaluate(
                    model=asked, tasks=self.names, task_manager=self._manager, limit=limit, log_samples=False
                )
            )
        return _scores(found)


class _Model(HFLM):  # type: ignore[misc]
    """The harness's own wrapper of a loaded model, which tells how far it is."""

    def __init__(self, model: Any, tokenizer: Any, *, add_bos: bool, tick: Callable[[float], None]) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, add_bos_token=add_bos)
        self._tick, self._asked, self._answered = tick, 0, 0
        self.set_cache_hook(self)

    def add_partial(self, attr: str, request: Any, result: Any) -> None:
        """The harness's word for one answered question."""
        self._answered += 1
        self._tick(self._answered / max(self._asked, self._answered))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        return super().loglikelihood(self._counted(requests), disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        return super().loglikelihood_rolling(self._counted(requests), disable_tqdm=disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        return super().generate_until(self._counted(requests), disable_tqdm=disable_tqdm)

    def _counted(self, requests: list[Any]) -> list[Any]:
        self._asked += len(requests)
        return requests


def _manager(names: Sequence[str], folder: Path | None) -> Any:
    """The harness's index of tasks: of `folder` alone where that has all of them, since its own takes seconds."""
    manager = TaskManager(include_path=str(folder), include_defaults=False) if folder else None
    known = [entry.cfg for entry in manager.task_index.values()] if manager else []
    if manager is None or not {*names, *mentioned(known)} <= {*manager.all_tasks}:
        manager = TaskManager(include_path=str(folder) if folder else None)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        remedy = "`lm-eval ls tasks` lists those of the harness; --tasks-path DIR adds your own"
        raise HermetiqError(f"no task of this name: {', '.join(unknown)}", where="--tasks", remedy=remedy)
    return manager


def _tried(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:  # Any data set and any task file there is fail in as many ways.
        line = (str(error).splitlines() or [""])[0][:300]
        raise HermetiqError(
            f"{type(error).__name__}: {line}",
            where="lm-evaluation-harness",
            remedy="check the task, its data and, where that comes from the Hub, the network",
        ) from error


@contextmanager
def _tamed() -> Iterator[None]:
    """Inside, the harness keeps quiet, and the templates of task files reach nothing but their question."""
    environment, initialize = lm_eval.utils.env, tqdm.__init__
    logger = logging.getLogger("lm_eval")
    level = logger.level
    sandbox = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    sandbox.filters.update(environment.filters)
    lm_eval.utils.env = sandbox
    tqdm.__init__ = partialmethod(initialize, disable=True)
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        lm_eval.utils.env, tqdm.__init__ = environment, initialize
        logger.setLevel(level)
        datasets.enable_progress_bars()


def _scores(found: Any) -> tuple[Score, ...]:
    """The harness's results, a score for each metric; their keys are `METRIC,FILTER` and `METRIC_stderr,FILTER`."""
    scores = []
    for task, values in found["results"].items():
        better = found["higher_is_better"].get(task) or {}
        documents = found["n-samples"].get(task)
        for key in sorted(key for key in values if "," in key):
            metric, _, filter = key.partition(",")
            if metric.endswith(_STDERR):
                continue
            scores.append(
                Score(
                    task=task,
                    version=str(found["versions"].get(task, "")),
                    filter=filter,
                    shots=_count(found["n-shot"].get(task)),
                    metric=metric,
                    higher_is_better=better.get(metric),
                    value=_number(values[key]),
                    stderr=_number(values.get(f"{metric}{_STDERR},{filter}")),
                    documents=documents and int(documents["effective"]),
                )
            )
    return tuple(scores)


def _number(value: Any) -> float | None:
    """A finite number; numpy's are none of Python's types."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
