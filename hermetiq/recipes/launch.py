"""Lines that start a runtime on an artifact; every name in them is quoted for the shell.

llama.cpp: `tools/server/README.md`. vLLM: its engine arguments and `SamplingParams`. Both read the stop ids out of the
artifact, so the lines do not repeat them; what a request itself may say stands in the comment above.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

from hermetiq.chat.contract import ChatContract
from hermetiq.errors import HermetiqError

from .stops import Stops, folder_stops, gguf_stops, in_words

Writer = Callable[[ChatContract, str], str]
"""Contract and path of an artifact to the text of a recipe."""


def llama_cpp(contract: ChatContract, path: str) -> str:
    """`llama-server` on a `.gguf`, with the template in the file (`--jinja`).

    Raises:
        HermetiqError: the path has control characters.
    """
    stops = gguf_stops(contract)
    notes = [f"The file itself states its template and the ids it stops on: {in_words(stops.ids)}."]
    if stops.unsaid:
        notes.append(f"llama.cpp cannot be told to stop on {in_words(stops.unsaid)}, too.")
    notes += _request(stops, {"stop": list(stops.texts)} if stops.texts else {})
    return _script(notes, "llama-server", "--model", path, "--alias", _name(path), "--jinja")


def vllm(contract: ChatContract, path: str) -> str:
    """`vllm serve` on a folder; its AWQ kernels, and the scales of both formats, are float16 (U74).

    Raises:
        HermetiqError: the path has control characters.
    """
    stops = folder_stops(contract)
    fields = {"stop_token_ids": list(stops.ids), **({"stop": list(stops.texts)} if stops.texts else {})}
    notes = [f"generation_config.json states the ids it stops on: {in_words(stops.ids)}.", *_request(stops, fields)]
    return _script(notes, "vllm", "serve", path, "--served-model-name", _name(path), "--dtype", "float16",
                   "--generation-config", "auto")  # fmt: skip


def _request(stops: Stops, fields: Mapping[str, object]) -> list[str]:
    """The comment on what each request must say, or may say where the runtime knows already."""
    duty = "must" if stops.texts else "can"
    return [f"Each request {duty} say so itself: {json.dumps(fields)}"] if fields else []


def _script(notes: list[str], *words: str) -> str:
    return "".join(f"# {note}\n" for note in notes) + shlex.join(words) + "\n"


def _name(path: str) -> str:
    """What the runtime calls the model: the name of its file or folder.

    Raises:
        HermetiqError: the path has control characters, which a terminal would obey.
    """
    if not path.isprintable():
        raise HermetiqError(f"no recipe can name {path!r}", remedy="rename the file")
    name = PurePosixPath(path).name
    return name.removesuffix(".gguf")
