"""Renders a chat template in a process of its own, because the template is somebody else's program.

The sandboxed Jinja environment keeps a template away from Python's internals. It does not end an endless loop or stop
`'a' * 10**10`, so the process also limits its own CPU time and memory before it reads the template. It is run as a
script and imports nothing but jinja2, so that it starts in a tenth of a second; `template.py` is its only caller.
`dialect.py` parses with the same environment, and runs nothing.

The environment renders what `apply_chat_template` of transformers renders; `tests/chat/test_template.py` holds that.
Its arguments are the limits: CPU seconds, bytes of memory, characters of one rendered chat. On stdin it reads
`{"template": …, "requests": [variables, …]}`, and prints a list of outcomes, one for each request.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MESSAGE_CHARACTERS = 300


class Forbidden(SecurityError):
    """The template does what no template may; the message says what, as in "a template that …"."""


UNSAFE: dict[type[Exception], str] = {
    Forbidden: "",
    SecurityError: "leaves the sandbox: ",
    MemoryError: "exhausts its memory",
    RecursionError: "nests too deep: ",
    OverflowError: "asks for too much: ",
}
"""How to say what an unsafe template does; the first fitting kind counts, and its own message follows."""


class GenerationBlock(Extension):
    """`{% generation %} … {% endgeneration %}` marks what the assistant wrote; here it prints its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class PublicNamespace(Namespace):
    """Jinja's `namespace`, which would otherwise store names such as `__class__`."""

    def __init__(self, /, *pairs: Any, **attributes: Any) -> None:
        super().__init__()
        for name, value in dict(*pairs, **attributes).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        refuse_private(name)
        super().__setitem__(name, value)


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox, but a forbidden attribute ends the rendering even where its value is not used."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise Forbidden(f"reads {attribute!r} of a {type(obj).__name__}")


def refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise Forbidden(f"uses the private name {name!r}")


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The `tojson` filter without Jinja's HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def make_dict(*pairs: Any, **items: Any) -> dict[Any, Any]:
    return dict(*pairs, **items)


def refuse_other_template(name: str) -> NoReturn:
    raise Forbidden(f"loads another template, {name!r}")


def environment() -> Environment:
    jinja = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationBlock, loopcontrols],
        loader=jinja2.FunctionLoader(refuse_other_template),
    )
    jinja.filters["tojson"] = to_json
    jinja.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": make_dict,
        "namespace": PublicNamespace,
    }
    return jinja


def refuse_private_names(template: nodes.Template) -> None:
    """Refuse dunder attributes anywhere in the template, also in branches that no rendering here would reach."""
    for attribute in template.find_all(nodes.Getattr):
        if attribute.attr.startswith("__"):
            refuse_private(attribute.attr)
    for reference in template.find_all(nodes.NSRef):
        refuse_private(reference.attr)
    for item in template.find_all(nodes.Getitem):
        if isinstance(item.arg, nodes.Const) and str(item.arg.value).startswith("__"):
            refuse_private(item.arg.value)


def limited(pieces: Iterator[str], characters: int) -> str:
    """Join the pieces, and refuse when they grow beyond `characters`."""
    text: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > characters:
            raise Forbidden(f"prints more than {characters} characters")
        text.append(piece)
    return "".join(text)


def outcome_of(error: BaseException) -> dict[str, str]:
    said = next((words for kind, words in UNSAFE.items() if isinstance(error, kind)), None)
    if said is not None:
        return {"unsafe": f"{said}{error}"[:MESSAGE_CHARACTERS]}
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return {"error": message[:MESSAGE_CHARACTERS]}


def render_all(source: str, requests: list[dict[str, Any]], output_characters: int) -> Iterator[dict[str, str]]:
    """One outcome for each request: `text`, `error` (the template's own complaint) or `unsafe`."""
    jinja = environment()
    source.encode()  # A lone surrogate is no text: no tokenizer takes it, and no file could hold it.
    refuse_private_names(jinja.parse(source))
    template = jinja.from_string(source)
    for variables in requests:
        try:
            text = limited(template.generate(**variables), output_characters)
            text.encode()
            yield {"text": text}
        except Exception as error:
            yield outcome_of(error)


def limit_process(cpu_seconds: int, memory_bytes: int) -> None:
    lower(resource.RLIMIT_CORE, 0)
    lower(resource.RLIMIT_FSIZE, 0)
    lower(resource.RLIMIT_CPU, cpu_seconds)
    if sys.platform != "darwin":  # which knows the limit, and refuses to set it
        lower(resource.RLIMIT_AS, memory_bytes)


def lower(limit: int, value: int) -> None:
    """Set a limit of this process, or leave the one it was started under where that is lower."""
    _, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def main() -> None:
    cpu_seconds, memory_bytes, output_characters = map(int, sys.argv[1:])
    limit_process(cpu_seconds, memory_bytes)
    job = json.load(sys.stdin)
    try:
        outcomes = list(render_all(job["template"], job["requests"], output_characters))
    except Exception as error:
        outcomes = [outcome_of(error)] * len(job["requests"])
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()
