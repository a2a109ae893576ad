"""Go's `text/template`, as much of it as a Modelfile of ours uses, and Ollama's way to call it.

Written from the documentation of the package and of Ollama's Modelfile; `test_ollama.py` holds it against the real
engine where a Go toolchain is installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

ACTION = re.compile(r"(\s*)\{\{-\s*((?:\"(?:[^\"\\]|\\.)*\"|[^\"}])*?)\s*\}\}", re.DOTALL)
ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|U[0-9a-f]{8}|[\\ntr])")
PLAIN = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Commands and values: quotes are taken off and nothing in them is an escape; `#` lines are comments."""
    commands, rest = [], text
    while rest.strip():
        line = rest.lstrip()
        if line.startswith("#"):
            rest = line.partition("\n")[2]
            continue
        match = re.match(r'([A-Z]+) (?:(stop) )?(?:"""(.*?)"""|"([^"]*)"|([^"\n]*))\n', line, re.DOTALL)
        assert match, line
        value = next(part for part in match.groups()[2:] if part is not None)
        commands.append((" ".join(filter(None, match.groups()[:2])), value))
        rest = line[match.end() :]
    return commands


def ollama_prompt(template: str, chat: Sequence[Mapping[str, str]]) -> str:
    """What Ollama sends to the model: system messages joined, and consecutive messages of a role made one."""
    system = "\n\n".join(message["content"] for message in chat if message["role"] == "system")
    messages: list[dict[str, str]] = []
    for message in chat:
        if messages and messages[-1]["Role"] == message["role"]:
            messages[-1]["Content"] += "\n\n" + message["content"]
        else:
            messages.append({"Role": message["role"], "Content": message["content"]})
    tree, rest = _parse(_actions(template))
    assert not rest
    return _run(tree, {".System": system, ".Messages": messages})


def _actions(template: str) -> list[str]:
    found, place = [], 0
    while place < len(template):
        match = ACTION.match(template, place)
        assert match, f"text outside an action: {template[place:]!r}"
        found.append(match[2])
        place = match.end()
    return found


def _parse(actions: list[str]) -> tuple[list[Any], list[str]]:
    """A block up to the `end` or `else` that closes it, and the actions from there on."""
    block: list[Any] = []
    while actions and not actions[0].startswith(("end", "else")):
        head, actions = actions[0], actions[1:]
        if head.startswith(("if ", "range ")):
            branches, actions = _branches(head, actions)
            block.append(branches)
        else:
            block.append(head)
    return block, actions


def _branches(head: str, actions: list[str]) -> tuple[tuple[str, list[Any], list[Any]], list[str]]:
    """An `if` or `range` with its body and its `else`, and the actions behind its `end`."""
    body, actions = _parse(actions)
    other: list[Any] = []
    closing, actions = actions[0], actions[1:]
    if closing.startswith("else if "):
        nested, actions = _branches(closing.removeprefix("else "), actions)
        return (head, body, [nested]), actions  # One `end` closes both.
    if closing == "else":
        other, actions = _parse(actions)
        closing, actions = actions[0], actions[1:]
    assert closing == "end", closing
    return (head, body, other), actions


def _run(block: list[Any], scope: dict[str, Any]) -> str:
    return "".join(_step(node, scope) for node in block)


def _step(node: Any, scope: dict[str, Any]) -> str:
    if isinstance(node, str):
        if assigned := re.fullmatch(r"(\$\w+) := (.+)", node):
            scope[assigned[1]] = _value(assigned[2], scope)
            return ""
        return str(_value(node, scope))
    head, body, other = node
    kind, _, argument = head.partition(" ")
    if kind == "if":
        return _run(body if _value(argument, scope) else other, scope)
    assert argument == "$i, $message := .Messages"
    each = enumerate(scope[".Messages"])
    return "".join(
        _run(body, {**scope, "$i": place, ".Role": entry["Role"], ".Content": entry["Content"]})
        for place, entry in each
    )


def _value(text: str, scope: dict[str, Any]) -> Any:
    if text.startswith('"'):
        return ESCAPE.sub(lambda match: PLAIN.get(match[1]) or chr(int(match[1][1:], 16)), text[1:-1])
    if text.startswith("not "):
        return not _value(text[4:], scope)
    if text == "and $last $.System":
        return scope["$last"] and scope[".System"]
    if text == "eq (len (slice $.Messages $i)) 1":
        return len(scope[".Messages"][scope["$i"] :]) == 1
    if match := re.fullmatch(r'eq \.Role (".*")', text):
        return scope[".Role"] == _value(match[1], scope)
    return scope[text.removeprefix("$") if text == "$.System" else text]
