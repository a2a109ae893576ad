"""Ways to break a file: JSON by its structure and by its text, headers by their fields, templates by their words.

Each takes the bytes of a sound file and a source of chance, and returns other bytes.
"""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any, Final

Mutation = Callable[[bytes, random.Random], bytes]

_DEEP: Final = json.loads("[" * 200 + "]" * 200)
VALUES: Final[tuple[Any, ...]] = (
    *(None, True, False, -1, 0, 1, 2, 802, 10**9, 2**31, 2**63, 10**30, -(10**30), 10**400),
    *(0.5, 1e308, -0.0, 1e-320, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        "x",
        "<|im_end|>",
        "\x00",
        "\ud800",
        "\u202e",
        "x" * 5000,
        "<|x|>",
        "Ġ",
        "a b",
        "[/bold]",
        "[red]",
        "\x1b[2J",
    ),
    *("../secret", "/etc/passwd", "~", "BF16", "F8_E4M3", "llama", "qwen2", "1", "-1", "none", "true", "é"),
    *([], [None], [[]], [1, 2], ["a", "b"], [-1], [0], [10**18], [1, 2, 3, 4, 5, 6, 7, 8, 9], _DEEP, [[0, 1]]),
    *(
        {},
        {"content": 1},
        {"type": "ByteLevel"},
        {"a": {}},
        {"id": 5},
        {"": 0},
        {"type": "Sequence"},
        {"Regex": "(a+)+$"},
    ),
)
KEYS: Final = ("", "x", "\ud800", "1", "-1", "type", "00", "9" * 30, "__class__", "../x", "vocab", "special", "default")
NUMBERS: Final = (
    *range(17),
    *(28, 31, 32, 255, 256, 1 << 15, (1 << 16) - 1, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1),
    *(1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
TEMPLATE_PIECES: Final = (
    *("{{", "}}", "{%", "%}", "{#", "#}", "for", "endfor", "messages", "[0]", "|", "'", "<|im_end|>", "\x00", "()"),
    *("loop.", "{% if true %}", "{% endif %}", "{% set x = x + 1 %}", "{% break %}", "{% macro m() %}", "{{ m() }}"),
    *("{% for i in range(10**9) %}", "{% for i in range(99999) %}{% for j in range(99999) %}", "{% endfor %}" * 2),
    *("{{ 'a' * 10**9 }}", "{{ 10**10**8 }}", "{{ messages.__class__.__mro__ }}", "{{ ''['__class__'] }}"),
    *("{{ messages|attr('__init__') }}", "{{ namespace(__class__=1) }}", "{% include '../secret' %}", "{{ self }}"),
    *("{% import 'os' as os %}", "{% extends 'x' %}", "{{ lipsum() }}", "{{ cycler.__init__.__globals__ }}"),
    *("{{ '%c' % 1114112 }}", "{{ '{0.__class__}'.format(1) }}", "{{ messages|map(attribute='__class__')|list }}"),
    *("{{ raise_exception('x') }}", "{{ strftime_now('%' * 9999) }}", "{{ dict(a=1)|tojson(indent=10**7) }}"),
    *("{{ '\\ud800' }}", "\u202e", "{{ loop }}", "{% generation %}", "{% endgeneration %}", "{{ [[]] * 10**7 }}"),
    *("{% set ns = namespace(f=none) %}", "{{ 'x'|center(10**9) }}", "(" * 400, "{{ " + "[" * 300, "{{ 1/0 }}"),
)


def json_values(data: bytes, draw: random.Random) -> bytes:
    """The document with a few of its values replaced, removed, renamed or put elsewhere."""
    document = json.loads(data)
    for _ in range(draw.randint(1, 3)):
        containers = [each for each in _containers(document) if each]
        if not containers:
            break
        container = draw.choice(containers[:40] if draw.random() < 0.7 else containers)
        key = draw.choice(list(container) if isinstance(container, dict) else range(len(container)))
        if draw.random() < 0.2:
            del container[key]
        elif isinstance(container, dict) and draw.random() < 0.2:
            container[draw.choice(KEYS)] = container.pop(key)
        else:
            container[key] = deepcopy(draw.choice((*VALUES, draw.choice(containers))))
    return json.dumps(document).encode()


def json_text(data: bytes, draw: random.Random) -> bytes:
    """The document as text that other readers would take, or that none does: encodings, doubles, depth, size."""
    text = data.decode()
    at = draw.choice([match.start() for match in re.finditer(r"[\[{,:]", text[:20_000])] or [0]) + 1
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: b"\xef\xbb\xbf" + data,
        lambda: text.encode(draw.choice(("utf-16", "utf-32", "utf-7", "latin-1")), errors="replace"),
        lambda: (text[:at] + draw.choice(("NaN", "-Infinity", "1" * 5000, "1e999999", "\\ud800")) + text[at:]).encode(),
        lambda: (text[:at] + draw.choice(("[", '{"a":')) * draw.choice((50, 5000, 100_000)) + text[at:]).encode(),
        lambda: (text[:1] + '"model_type": "llama", "model_type": 1,' + text[1:]).encode(),
        lambda: (text[:at] + draw.choice(("/* c */", "// c\n", ",", "\x00", "\t\v", "'")) + text[at:]).encode(),
        lambda: data[: draw.randrange(len(data) + 1)],
        lambda: draw.choice(
            (b"", b"null", b"[]", b"1", b'"x"', b"{}", b"{} {}", b"version https://git-lfs\n", b"\xff")
        ),
        lambda: re.sub(
            rb"\b\d+\b", lambda m: str(draw.choice((*NUMBERS, -1))).encode(), data, count=draw.randint(1, 9)
        ),
        lambda: re.sub(rb"true|false|null", lambda m: draw.choice((b"0", b'""', b"[]", b"null")), data, count=4),
    )
    return draw.choice(ways)()


def raw_bytes(data: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, cut out or put in, most of them near the start, where headers are."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(max(1, min(len(changed), draw.choice((64, 2048, 1 << 30)))))
        draw.choice((_flip, _cut, _insert, _number))(changed, at, draw)
    return bytes(changed)


def safetensors_header(data: bytes, draw: random.Random) -> bytes:
    """Another header before the same bytes: types, shapes, places, its own length, or the JSON that it is."""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + size], data[8 + size :]
    way = draw.random()
    if way < 0.15:
        return struct.pack("<Q", draw.choice((*NUMBERS, size - 1, size + 1, len(data)))) + header + body
    if way < 0.3:
        header = draw.choice((json_values, json_text))(header, draw)
    else:
        document = json.loads(header)
        names = [name for name in document if name != "__metadata__"]
        entries = {name: document[name] for name in names}
        for name in draw.sample(names, min(len(names), draw.randint(1, 3))):
            document.pop(name)
            document |= _broken_entry(name, entries, draw)
        header = json.dumps(document).encode()
    if draw.random() < 0.2:
        body = body[: draw.randrange(len(body) + 1)]
    return struct.pack("<Q", len(header)) + header + body


def _broken_entry(name: str, entries: Mapping[str, Any], draw: random.Random) -> dict[str, Any]:
    """What stands in the place of one tensor's entry."""
    entry = entries[name]
    start, end = entry["data_offsets"]
    other = entries[draw.choice(list(entries))]
    changes: tuple[dict[str, Any], ...] = (
        {"dtype": draw.choice(("F64", "F32", "F16", "BF16", "I8", "U8", "BOOL", "F8_E5M2", "F4", "X", "", None, 7))},
        {"shape": draw.choice((entry["shape"][::-1], [*entry["shape"], 1], [-1], [0], [2**40, 2**40], [], None, "x"))},
        {"shape": other["shape"], "data_offsets": other["data_offsets"]},
        {
            "data_offsets": draw.choice(
                ([end, start], [0, 0], [-1, 1], [start, end + 2], [0, 2**63], [start], None, "x")
            )
        },
        {"more": draw.choice(VALUES)},
    )
    way = draw.randrange(len(changes) + 2)
    if way < len(changes):
        return {name: entry | changes[way]}
    if way == len(changes):
        return {draw.choice((*KEYS, "lm_head.weight", f"{name}.qweight")): entry}
    return {name: draw.choice(VALUES)}


def gguf_header(data: bytes, draw: random.Random) -> bytes:
    """Counts, lengths, types and values of the header changed where they stand: beside a key or a tensor's name."""
    changed = bytearray(data)
    names = list(re.finditer(rb"[a-z_0-9]+(?:\.[a-z_0-9]+)+", data))
    for _ in range(draw.randint(1, 3)):
        place, size = draw.choice(((4, 4), (8, 8), (16, 8)))
        if draw.random() < 0.9:
            name = draw.choice(names[:60] if draw.random() < 0.6 else names)
            place, size = draw.choice(
                (
                    (name.start() - 8, 8),
                    *((name.end() + at, width) for at in (0, 4, 8, 12, 16, 20, 28) for width in (4, 8)),
                )
            )
            if draw.random() < 0.15:
                changed[name.start() : name.end()] = (
                    draw.choice(names).group()[: len(name.group())].ljust(len(name.group()), b"x")
                )
                continue
        form = {4: "<I", 8: "<Q"}[size]
        number = draw.choice((*NUMBERS, draw.randrange(1 << 16))) % (1 << 8 * size)
        changed[place : place + size] = struct.pack(form, number)
    return bytes(changed[: len(data) if draw.random() < 0.9 else draw.randrange(len(data))])


def template(data: bytes, draw: random.Random) -> bytes:
    """The template with pieces of its language put in or cut out."""
    text = data.decode()
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(text) + 1)
        text = text[:at] + draw.choice((*TEMPLATE_PIECES, "")) + text[at + draw.choice((0, 0, 1, 10)) :]
    return text.encode(errors="surrogatepass")


def yaml_text(data: bytes, draw: random.Random) -> bytes:
    """Lines of a YAML file replaced, moved and doubled; tags, anchors and odd scalars among them."""
    lines = data.decode().splitlines()
    odd = (
        *("a: &a [*a]", "<<: *nowhere", "!!python/object/apply:os.system [ls]", "!!int ''", "? [a]\n: b", "\t- x"),
        *("base_model: ../secret", "base_model: /etc/passwd", "models: 1", "- - - -", "tokenizer: {source: union}"),
        *("a: &a [x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\nd: [*c,*c]", "license: [", "license: 2001-01-01", "\x00"),
        *("base_model: [1, null, {a: b}]", "license: !!binary x", "[" * 3000, "%YAML 9.9", "---", "...", "é: \ud800"),
    )
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(lines) + 1)
        lines[at : at + draw.choice((0, 0, 1, 3))] = [draw.choice((*odd, *lines, ""))]
    return "\n".join(lines).encode(errors="surrogatepass")


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _containers(item)


def _flip(data: bytearray, at: int, draw: random.Random) -> None:
    data[at : at + 1] = bytes([draw.randrange(256)])


def _cut(data: bytearray, at: int, draw: random.Random) -> None:
    del data[at : at + draw.choice((1, 8, 100, 1 << 30))]


def _insert(data: bytearray, at: int, draw: random.Random) -> None:
    data[at:at] = draw.choice((b"\x00", b"\xff\xfe", b'"', b"}", b"[" * 3000, draw.randbytes(8)))


def _number(data: bytearray, at: int, draw: random.Random) -> None:
    data[at : at + 8] = struct.pack("<Q", draw.choice(NUMBERS))
