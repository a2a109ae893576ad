"""llama.cpp as its users meet it: what it reads from a GGUF, and what it computes with it.

Our own reader and our own writer may agree on a mistake; llama.cpp decides whether the artifact works. It runs in a
child process (`llama_cpp_worker.py`), because a vocabulary it dislikes aborts the process, and is asked over HTTP on
loopback. Endpoints: llama.cpp's `tools/server/README.md`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from hermetiq.errors import CheckFailed, HermetiqError
from hermetiq.machine import cores

LOG_TAIL = 1500
"""Characters of llama.cpp's log that an error shows."""
LOG_LINE = re.compile(r"[\d.]+ (?P<level>[A-Z]) (?P<text>.*)", re.DOTALL)
QUIET_LEVELS = "ID"
"""Information and debugging: of no interest to somebody whose file does not load."""
WORKER = Path(__file__).with_name("llama_cpp_worker.py")

# A temperature that makes every token equally likely: only a bias of minus infinity still tells tokens apart.
FLAT = 1e6
CERTAIN = 1000.0
"""A bias on a token's logit that no other logit comes near."""


@dataclass(frozen=True)
class Generation:
    """An answer: `ids` include the token that ended it when `stopped`; `text` is without it."""

    ids: tuple[int, ...]
    text: str
    stopped: bool
    """Ended by a token of the end-of-generation set, not by the limit."""


class LlamaCpp:
    """One GGUF loaded by llama.cpp; a context manager, and the child is gone on exit.

    Raises:
        CheckFailed: llama.cpp refuses the file, dies on it, or does not answer; the error shows the end of its log.
        HermetiqError: `xllamacpp` is not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int = 2048,
        threads: int | None = None,
        start_timeout: float = 300.0,
        request_timeout: float = 600.0,
    ) -> None:
        """`context` in tokens, timeouts in seconds; `threads` defaults to all but one of the cores it may use."""
        self.path = path
        self._settings = {
            "model": str(path.resolve()),
            "context": context,
            "threads": threads or _spare_cores(),
            "key": secrets.token_hex(16),
        }
        self._start_timeout, self._request_timeout = start_timeout, request_timeout
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None
        self._connection: HTTPConnection | None = None

    def __enter__(self) -> Self:
        if not self.path.is_file():
            raise HermetiqError("no such file", where=str(self.path))
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        # -P: the worker's own folder, which holds a llama_cpp.py, must not be searched for modules.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )
        try:
            address = urlsplit(self._start(self._process))
            self._connection = HTTPConnection(
                address.hostname or "127.0.0.1", address.port, timeout=self._request_timeout
            )
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child and forget its log; harmless when repeated."""
        if self._connection:
            self._connection.close()
        if self._process:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream:
                    with suppress(BrokenPipeError):
                        stream.close()
        if self._log:
            self._log.close()
        self._connection = self._process = self._log = None

    def tokenize(self, texts: Sequence[str], *, add_special: bool = False) -> list[list[int]]:
        """Ids of each text; tags are recognised, BOS and EOS are added only on request and by the file's policy."""
        options = {"parse_special": True, "add_special": add_special}
        return [self._ask("POST", "/tokenize", {"content": text, **options})["tokens"] for text in texts]

    def apply_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt llama.cpp's own Jinja engine makes of `messages` with the file's template, ready for an answer."""
        return str(self._ask("POST", "/apply-template", {"messages": list(messages)})["prompt"])

    @cached_property
    def vocabulary(self) -> int:
        """Tokens that llama.cpp sees in the file, padding rows included."""
        return int(self._ask("GET", "/v1/models")["data"][0]["meta"]["n_vocab"])

    def next_logprobs(self, ids: Sequence[int]) -> npt.NDArray[np.float64]:  # (vocabulary,)
        """Natural-log probability of every token after `ids`.

        The server leaves the probabilities out when the token it picks is an unfinished piece of UTF-8, so it is made
        to pick one that ends generation; the bias changes the pick alone.
        """
        ending = min(self.end_of_generation)
        answer = self._complete(ids, n_probs=self.vocabulary, logit_bias=[[ending, CERTAIN]])
        result = np.full(self.vocabulary, -np.inf)
        for entry in answer["completion_probabilities"][0]["top_logprobs"]:
            result[entry["id"]] = entry["logprob"]
        # Printed in single precision, they add up to one only nearly.
        result -= np.logaddexp.reduce(result)
        return result

    def generate(self, ids: Sequence[int], *, max_tokens: int) -> Generation:
        """Continue `ids` greedily by at most `max_tokens`."""
        answer = self._complete(ids, n_predict=max_tokens, return_tokens=True)
        return Generation(tuple(answer["tokens"]), answer["content"], answer["stop_type"] == "eos")

    @cached_property
    def end_of_generation(self) -> frozenset[int]:
        """Every id that ends generation in this runtime: those the file names, and those llama.cpp adds by their text.

        Complete, in one request: asked to `ignore_eos`, llama.cpp gives each token of the set, and no other, a
        probability of zero and leaves it out of its answer; at this temperature nothing else can come near zero.
        """
        answer = self._complete(
            [0],
            n_probs=self.vocabulary,
            ignore_eos=True,
            post_sampling_probs=True,
            temperature=FLAT,
            samplers=["temperature"],
        )
        probabilities = {entry["id"]: entry["prob"] for entry in answer["completion_probabilities"][0]["top_probs"]}
        if None in probabilities.values():
            raise self._failure("llama.cpp computes NaN from this file")
        return frozenset(range(self.vocabulary)) - {token for token, share in probabilities.items() if share > 0.0}

    def _complete(self, ids: Sequence[int], **options: Any) -> dict[str, Any]:
        """Greedy completion of one token unless `options` say otherwise; nothing is reused from earlier requests."""
        request = {"prompt": list(ids), "n_predict": 1, "temperature": 0.0, "seed": 0, "cache_prompt": False}
        return self._ask("POST", "/completion", request | options)

    def _start(self, process: subprocess.Popen[str]) -> str:
        """Hand the child its settings and wait for the address it listens on."""
        assert process.stdin
        assert process.stdout
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(self._settings) + "\n")
            process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], self._start_timeout)
        if not ready:
            raise self._failure(f"llama.cpp did not load the file within {self._start_timeout:.0f} s")
        line = process.stdout.readline()
        if not line:
            process.wait()
            raise self._failure("llama.cpp does not load this file")
        return str(json.loads(line)["address"])

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        if not self._connection:
            raise HermetiqError("llama.cpp is not running", where=str(self.path))
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._settings['key']}"}
        try:
            self._connection.request(method, path, json.dumps(body), headers)
            response = self._connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, HTTPException, ValueError) as error:
            raise self._failure(f"llama.cpp gave no answer to {path} ({error or type(error).__name__})") from error
        if response.status != 200:
            raise self._failure(f"llama.cpp refused {path}: {answer.get('error', answer)}")
        return dict(answer)

    def _failure(self, what: str) -> HermetiqError:
        """The error with the end of llama.cpp's log, or with the missing package when that is the cause."""
        log = self._complaints()
        if "No module named 'xllamacpp'" in log:
            return HermetiqError("the package xllamacpp is not installed", remedy="pip install xllamacpp")
        return CheckFailed(
            f"{what}; its log ends:\n{log[-LOG_TAIL:].strip()}",
            where=self.path.name,
            remedy="the file breaks in llama.cpp as it would for its users; do not publish it",
        )

    def _complaints(self) -> str:
        """llama.cpp's log without information, times and this machine's folders: the same for the same fault."""
        if not self._log:
            return ""
        self._log.seek(0)
        kept = []
        for line in self._log:
            match = LOG_LINE.match(line)
            if match is None or match["level"] not in QUIET_LEVELS:
                kept.append(match["text"] if match else line)
        return "".join(kept).replace(f"{self.path.resolve().parent}{os.sep}", "")


def _spare_cores() -> int:
    """All cores but one: the threads wait for each other by spinning, so a core that has anything else to do slows down
    every one of them (5 to 10 times, measured on two cores)."""
    return max(1, cores() - 1)
