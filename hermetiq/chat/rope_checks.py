"""The two spellings of the rotary embedding: readers of each age know one, and take a default for the other (U29)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from hermetiq.chat.subject import Subject
from hermetiq.errors import Finding
from hermetiq.rules import finding

_NEW, _OLD = "rope_parameters", "rope_scaling"
_BASE: Final = 10000.0
"""What readers of the old spelling take where the file has no `rope_theta`, in every supported family."""


def rope_form(subject: Subject) -> Iterator[Finding]:
    """`rope_parameters` that the old spelling contradicts, or leaves out where it is not the default.

    The old spelling alone is fine: readers of the new one know it.
    """
    config = subject.checkpoint.documents.get("config.json", {})
    new, old = config.get(_NEW), config.get(_OLD)
    if not isinstance(new, Mapping) or not new:
        return
    scaling = old if isinstance(old, Mapping) else {}
    theta = scaling.get("rope_theta", config.get("rope_theta"))
    if theta is None and new.get("rope_theta", _BASE) != _BASE:
        yield _missing("rope_theta", new["rope_theta"])
    elif theta is not None and new.get("rope_theta", theta) != theta:
        yield _apart("rope_theta", theta, new["rope_theta"])
    if not scaling and _kind(new) != "default":
        yield _missing(_OLD, _kind(new))
    elif scaling and _kind(scaling) != _kind(new):
        yield _apart("rope_type", _kind(scaling), _kind(new))
    for key in sorted(scaling.keys() & new.keys() - {"rope_theta", "rope_type", "type"}):
        if scaling[key] != new[key]:
            yield _apart(key, scaling[key], new[key])


def _kind(stated: Mapping[str, Any]) -> Any:
    return stated.get("rope_type", stated.get("type", "default"))


def _missing(field: str, value: object) -> Finding:
    found = f"{value!r} in {_NEW} alone"
    return finding("rope-form", file="config.json", field=field, found=found, expected="the same in the old spelling")


def _apart(field: str, old: object, new: object) -> Finding:
    found = f"{old!r}, and {new!r} in {_NEW}"
    return finding("rope-form", file="config.json", field=field, found=found, expected="one value", severity="error")
