"""What a chat template asks of Jinja beyond the engines that runtimes without Python have (U51).

Programs in JavaScript render with `@huggingface/jinja`, others with engines written after the same templates. What that
one knows in its version 0.5.11 is listed here, read from its source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from jinja2 import TemplateError, nodes

from hermetiq.chat.probe import TEMPLATE_FIELD
from hermetiq.chat.render_worker import environment
from hermetiq.chat.subject import Subject
from hermetiq.checkpoint.shards import listed
from hermetiq.errors import Finding
from hermetiq.rules import finding

_KNOWN: Final[Mapping[str, frozenset[str]]] = {
    kind: frozenset(names.split())
    for kind, names in {
        "filter": "abs bool capitalize default dictsort first float indent int items join last length list lower map "
        "rejectattr replace reverse safe selectattr sort string title tojson trim unique upper",
        "test": "boolean callable defined eq equalto even false integer iterable lower mapping none number odd "
        "sequence string true undefined upper",
        "method": "capitalize dictsort endswith get items keys lower lstrip replace rstrip split startswith strip "
        "title upper values",
    }.items()
}
_ABSENT: Final[tuple[tuple[type[nodes.Node], str], ...]] = (
    (nodes.With, "{% with %}"),
    (nodes.ScopedEvalContextModifier, "{% autoescape %}"),
    (nodes.Block, "{% block %}"),
    (nodes.Extends, "{% extends %}"),
    (nodes.Include, "{% include %}"),
    (nodes.Import, "{% import %}"),
    (nodes.FromImport, "{% from %}"),
    (nodes.Pow, "the operator **"),
)


def template_dialect(subject: Subject) -> Iterator[Finding]:
    """Filters, tests, methods and statements of the template that only Python's Jinja is sure to have."""
    if subject.probe is None:
        return  # What does not render in Python has findings of its own.
    beyond = list(dict.fromkeys(_beyond(subject.probe.template)))
    if beyond:
        yield finding(
            "template-dialect",
            file=subject.probe.file,
            field=TEMPLATE_FIELD,
            found=listed(beyond),
            expected="what every engine knows",
        )


def _beyond(template: str) -> Iterator[str]:
    """Each use, in words; nothing of the template is run."""
    try:
        tree = environment().parse(template)
        found = list(tree.find_all(nodes.Node))
    except (TemplateError, RecursionError):
        # Python read it a moment ago, with more stack to spare.
        yield "deep nesting"
        return
    for node in found:
        kind, name = _named(node)
        if kind and name not in _KNOWN[kind]:
            yield f"the {kind} {name}"
        yield from (words for absent, words in _ABSENT if isinstance(node, absent))


def _named(node: nodes.Node) -> tuple[str, str]:
    """What a node calls by name, and whether that is a filter, a test or a method; empty for all else."""
    if isinstance(node, nodes.Filter):
        return "filter", node.name
    if isinstance(node, nodes.Test):
        return "test", node.name
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
        return "method", node.node.attr
    return "", ""
