"""Rotary position scaling as GGUF states it: keys for `linear` and `yarn`, a tensor of factors for `llama3`.

A kind that llama.cpp would not compute the same way is refused: such a file answers well and falls apart on long text.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose, log, pi
from typing import Any

from hermetiq.errors import HermetiqError
from hermetiq.model import ModelConfig

FACTORS = "rope_freqs.weight"
"""Name of the tensor that divides each rotary frequency."""

_LENGTH = "original_max_position_embeddings"
_KEYS: Mapping[str, Mapping[str, str]] = {
    "linear": {"factor": "factor"},
    "yarn": {"factor": "factor", _LENGTH: "original_context_length"},
    "llama3": {},
}
"""By kind: field of `rope_scaling` -> what follows `rope.scaling.` in its GGUF key."""

_END = float(1 << 31)
"""Above every factor and length; GGUF has 32 bits for either."""
_YARN_ASSUMED = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", _LENGTH)
_REQUIRED = {"linear": ("factor",), "yarn": ("factor",), "llama3": _LLAMA3}


def scaling(config: ModelConfig) -> dict[str, Any]:
    """What follows `rope.scaling.` in the metadata, with its values; empty where nothing is scaled by keys.

    Raises:
        HermetiqError: a kind or a field of `rope_scaling` that llama.cpp cannot express.
    """
    kind, fields = _checked(config)
    keys = {key: fields[field] for field, key in _KEYS.get(kind, {}).items() if fields.get(field) is not None}
    if kind == "yarn":
        keys.setdefault("original_context_length", config.context_length)
    return {"type": kind, **keys} if keys else {}


def factors(config: ModelConfig) -> tuple[float, ...] | None:  # (head_dim / 2,)
    """Divisor of each rotary frequency under `llama3` scaling, or None for every other kind.

    Long waves are stretched by `factor`, short ones stay, those between are interpolated (Llama 3.1's `apply_scaling`).

    Raises:
        HermetiqError: as `scaling`.
    """
    kind, fields = _checked(config)
    if kind != "llama3":
        return None
    factor, low, high, original = (float(fields[name]) for name in _LLAMA3)

    def divisor(frequency: float) -> float:
        turns = original * frequency / (2 * pi)
        kept = min(1.0, max(0.0, (turns - low) / (high - low)))
        return 1 / (kept + (1 - kept) / factor)

    return tuple(divisor(config.rope_theta ** (-2 * i / config.head_dim)) for i in range(config.head_dim // 2))


def _checked(config: ModelConfig) -> tuple[str, Mapping[str, Any]]:
    """The kind of scaling and its fields, or a refusal."""
    fields = {key: value for key, value in (config.rope_scaling or {}).items() if value is not None}
    kind = fields.get("rope_type", fields.get("type", "default"))
    if fields.get("partial_rotary_factor", 1) != 1:
        raise _refused("partial_rotary_factor", fields["partial_rotary_factor"], "1")
    if kind == "default":
        return kind, {}
    if kind not in _KEYS:
        raise _refused("rope_type", kind, ", ".join(_KEYS))
    for name in _REQUIRED[kind]:
        if not _is_positive(fields.get(name)):
            raise _refused(name, fields.get(name), "a positive number")
    if kind == "llama3" and fields["high_freq_factor"] <= fields["low_freq_factor"]:
        raise _refused("high_freq_factor", fields["high_freq_factor"], "more than low_freq_factor")
    if kind == "yarn":
        _check_yarn(fields)
    return kind, fields


def _check_yarn(fields: Mapping[str, Any]) -> None:
    """Hold the fields that llama.cpp has no key for, or does not read in these architectures, to what it assumes."""
    for name, assumed in (("attention_factor", 1 + 0.1 * log(max(1.0, fields["factor"]))), *_YARN_ASSUMED.items()):
        found = fields.get(name, assumed)
        if not isinstance(found, int | float) or not 0 < found < _END or not isclose(found, assumed, rel_tol=1e-4):
            raise _refused(name, found, f"{assumed:.6g}, or no such field")
    length = fields.get(_LENGTH, 1)
    if not isinstance(length, int) or not _is_positive(length):
        raise _refused(_LENGTH, length, "a positive integer")
    for name in ("mscale", "mscale_all_dim"):
        if name in fields:
            raise _refused(name, fields[name], "no such field")


def _is_positive(value: object) -> bool:
    """Compared, not converted: JSON has NaN and integers that no float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _END


def _refused(field: str, found: object, expected: str) -> HermetiqError:
    return HermetiqError(
        f"llama.cpp cannot compute this rotary scaling: found {found!r:.60}, expected {expected}",
        where=f"config.json: rope_scaling.{field}",
        remedy="export to another format, or from a checkpoint with a supported scaling",
    )
