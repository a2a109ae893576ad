"""A Modelfile: the artifact, the template in Ollama's language, and the stops that only a text can say.

Format: Ollama's `docs/modelfile.md`; the template is Go's `text/template` with `.System` and `.Messages`. Ollama joins
the system messages of a chat into `.System` and consecutive messages of one role into one. `PARAMETER stop` takes
texts only; ids are obeyed as the `.gguf` states them.
"""

from __future__ import annotations

import re

from hermetiq.chat.contract import ChatContract
from hermetiq.errors import HermetiqError

from .stops import gguf_stops, in_words
from .turns import Turns, turns

_ESCAPES = {"\\": "\\\\", '"': "\\x22", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_BARE = re.compile(r"[\w./+~=,@%-]+", re.ASCII)


def modelfile(contract: ChatContract, path: str) -> str:
    """The Modelfile for the `.gguf` at `path`, seen from where the Modelfile will lie.

    Raises:
        HermetiqError: the template is no chain of fixed texts and messages, or a name or a stop cannot be written.
        TemplateUnsafe: the template may not be rendered.
    """
    pieces, stops = turns(contract), gguf_stops(contract)
    notes = {
        f"The file itself states the ids it stops on: {in_words(stops.ids)}.": True,
        f"Ollama cannot be told to stop on {in_words(stops.unsaid)}, too.": stops.unsaid,
        "The model's template takes no system message: SYSTEM has no effect.": pieces.system is None,
        "The model's template strips white space around texts of "
        f"{', '.join(sorted(pieces.trimmed))}; Ollama does not.": pieces.trimmed,
        "The model's template drops what earlier answers thought; Ollama keeps it.": pieces.forgetful,
        "The model's template prints the day; below it stays the day on which this was written.": (
            "strftime_now" in contract.template
        ),
    }
    lines = [f"# {note}" for note, holds in notes.items() if holds]
    # Without this Ollama looks for a name in its library, and for `~` in the home folder.
    place = path if path.startswith(("/", "./", "../")) else f"./{path}"
    lines += [f"FROM {_quoted(place)}", f'TEMPLATE """{go_template(pieces)}"""']
    lines += [f"PARAMETER stop {_quoted(text)}" for text in stops.texts]
    return "\n".join(lines) + "\n"


def go_template(pieces: Turns) -> str:
    """The pieces as a Go template over `.System` and `.Messages`.

    All text stands in string constants, and every action trims what is before it, so line breaks of the template are
    for the eye only.
    """
    opening = late = ""
    if pieces.system is not None:
        before, behind = map(_constant, pieces.system)
        if pieces.late:
            late = f"{{{{- if and $last $.System }}}}{before}{{{{- $.System }}}}{behind}{{{{- end }}}}\n"
        else:
            opening = f"{{{{- if .System }}}}{before}{{{{- .System }}}}{behind}\n{{{{- else }}}}"
    return (
        f"{opening}{_constant(pieces.start)}" + ("\n{{- end }}" if opening else "") + "\n"
        "{{- range $i, $message := .Messages }}\n"
        "{{- $last := eq (len (slice $.Messages $i)) 1 }}\n"
        '{{- if eq .Role "user" }}\n'
        f"{late}{{{{- .Content }}}}"
        f"{{{{- if $last }}}}{_constant(pieces.prompt)}{{{{- else }}}}{_constant(pieces.answer)}{{{{- end }}}}\n"
        '{{- else if eq .Role "assistant" }}{{- .Content }}'
        f"{{{{- if not $last }}}}{_constant(pieces.question)}{{{{- end }}}}\n"
        "{{- end }}\n"
        "{{- end }}"
    )


def _constant(text: str) -> str:
    """An action that prints the text; nothing for nothing.

    Quotes are escaped, so that no text ends the Modelfile's own triple quote.
    """
    return f'{{{{- "{"".join(map(_escaped, text))}" }}}}' if text else ""


def _escaped(letter: str) -> str:
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    return letter if letter.isprintable() else f"\\U{ord(letter):08x}"


def _quoted(text: str) -> str:
    """A name or a stop as a Modelfile takes it; it knows quotes and no escapes.

    Raises:
        HermetiqError: there is no way to write it.
    """
    if _BARE.fullmatch(text):
        return text
    if not text or '"' in text or not all(letter.isprintable() or letter == "\n" for letter in text):
        raise HermetiqError(f"a Modelfile cannot hold {text!r}", remedy="rename the file, or serve it with llama.cpp")
    return f'"{text}"'
