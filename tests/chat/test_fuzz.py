"""`inspect` on checkpoints broken at random: whatever lies there, it ends in findings or in one error of ours.

A case is its number: `outcome(corpus.broken(number))` repeats it.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from hermetiq.chat import template as template_module
from hermetiq.chat.inspect import Inspection, inspect
from hermetiq.errors import HermetiqError
from hermetiq.pipeline import export, prepare
from hermetiq.quantize.spec import parse
from tests.fixtures.models import copy_of, tiny_checkpoint

CASES = 250
JSON = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
WEIGHTS, TEMPLATE = "model.safetensors", "chat_template.jinja"
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 802, 10**9, 10**30, 0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "<|im_end|>", "\x00", "\ud800", "\u202e", "x" * 5000, "<|x|>", "Ġ", "a b"),
    *([], [None], [[]], [1, 2], ["a", "b"], {}, {"content": 1}, {"type": "ByteLevel"}, {"a": {}}, {"id": 5}),
)
PIECES = (
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "for",
    "endfor",
    "messages",
    "[0]",
    "|",
    "'",
    "<|im_end|>",
    "\x00",
    "()",
    "loop.",
)


def mutated_json(data: bytes, draw: random.Random) -> bytes:
    """The document with a few of its values replaced, removed or put elsewhere."""
    document = json.loads(data)
    for _ in range(draw.randint(1, 3)):
        containers = [each for each in _containers(document) if each]
        container = draw.choice(containers[:40] if draw.random() < 0.7 else containers)
        key = draw.choice(list(container) if isinstance(container, dict) else range(len(container)))
        if draw.random() < 0.2:
            del container[key]
        elif isinstance(container, dict) and draw.random() < 0.2:
            container[draw.choice(("", "x", "\ud800", "1", "-1", "type"))] = container.pop(key)
        else:
            container[key] = draw.choice((*VALUES, deepcopy(draw.choice(containers))))
        if not document:
            break
    return json.dumps(document).encode()


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _containers(item)


def mutated_bytes(data: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, cut out or put in, most of them near the start, where headers are."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        end = max(1, min(len(changed), draw.choice((64, 2048, 1 << 30))))
        at = draw.randrange(end)
        draw.choice((_flip, _cut, _insert, _number))(changed, at, draw)
    return bytes(changed)


def _flip(data: bytearray, at: int, draw: random.Random) -> None:
    data[at : at + 1] = bytes([draw.randrange(256)])


def _cut(data: bytearray, at: int, draw: random.Random) -> None:
    del data[at : at + draw.choice((1, 8, 100, 1 << 30))]


def _insert(data: bytearray, at: int, draw: random.Random) -> None:
    data[at:at] = draw.choice((b"\x00", b"\xff\xfe", b'"', b"}", b"[" * 3000, draw.randbytes(8)))


def _number(data: bytearray, at: int, draw: random.Random) -> None:
    data[at : at + 8] = struct.pack("<Q", draw.choice((0, 1, 1 << 20, 1 << 31, 1 << 40, (1 << 64) - 1)))


def mutated_template(data: bytes, draw: random.Random) -> bytes:
    """The template with pieces of its language put in or cut out."""
    text = data.decode()
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(text) + 1)
        text = text[:at] + draw.choice((*PIECES, "")) + text[at + draw.choice((0, 1, 10)) :]
    return text.encode()


class Corpus:
    """A sound checkpoint and its artifact, of which each case breaks one file."""

    def __init__(self, folder: Path) -> None:
        self.folder = tiny_checkpoint(folder / "model", family="qwen2", tokenizer="bpe", layers=1, tied=True)
        template = json.loads((self.folder / "tokenizer_config.json").read_text())["chat_template"]
        (self.folder / TEMPLATE).write_text(template)
        export(prepare(self.folder, [parse("gguf:F16")]), folder / "out")
        (self.artifact,) = (folder / "out" / "gguf").iterdir()
        self._work = folder / "work"

    def broken(self, case: int) -> Path:
        """The checkpoint of one case; of the same number always the same."""
        draw = random.Random(case)
        file = draw.choice((*JSON, *JSON, TEMPLATE, WEIGHTS, WEIGHTS, self.artifact.name, self.artifact.name))
        if file == self.artifact.name:
            path = self._work.with_suffix(".gguf")
            path.write_bytes(mutated_bytes(self.artifact.read_bytes(), draw))
            return path
        target = self._work / str(case)
        copy_of(self.folder, target)
        mutate: Callable[[bytes, random.Random], bytes] = mutated_bytes
        if file in JSON and draw.random() < 0.8:
            mutate = mutated_json
        if file == TEMPLATE:
            mutate = mutated_template
        data = (self.folder / file).read_bytes()
        (target / file).unlink()
        (target / file).write_bytes(mutate(data, draw))
        return target


def outcome(path: Path) -> str:
    """What `inspect` made of it, in a word; raises whatever else it raised."""
    try:
        found = inspect(str(path))
    except HermetiqError:
        return "error"
    assert isinstance(found, Inspection)
    json.dumps(found.to_json(), ensure_ascii=False).encode()
    return "findings" if found.findings else "sound"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("fuzz"))


def test_every_broken_checkpoint_ends_in_findings_or_an_error(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    # Most cases leave the template alone, and its process is what takes the time.
    monkeypatch.setattr(template_module, "_run", cache(template_module._run))
    outcomes = [outcome(corpus.broken(case)) for case in range(CASES)]
    # The cases are worth something only if they reach all three ends.
    assert {"sound", "findings", "error"} == set(outcomes)
