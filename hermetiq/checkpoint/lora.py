"""A LoRA in peft's layout: what its two files say about each weight of the base.

`adapter_config.json` states rank and scale, for some modules apart; `adapter_model.safetensors` holds the factors, and
whole weights for the modules that were trained whole. What cannot be merged exactly is refused by its name: an adapter
that is half applied is a model nobody trained.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from hermetiq.errors import HermetiqError, Refusal
from hermetiq.model import EMBEDDING, HEAD
from hermetiq.rules import finding

from .base import TensorInfo
from .documents import incomplete, read_json
from .fields import Fields
from .folder import quantized
from .patterns import Patterns, read_patterns
from .shards import PICKLES, listed, read_header

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_LINEAR = (".lora_A.weight", ".lora_B.weight")
_EMBEDDING = (".lora_embedding_A", ".lora_embedding_B")
_WHOLE = ".base_layer.weight"
_COPIES = (".modules_to_save.weight", ".original_module.weight")
"""After the vocabulary grew, peft saves these beside a `.weight`: the same again, and what it was before training."""

_UNDERSTOOD = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "modules_to_save", "bias"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
        # No say in the merged weights. peft ignores fan_in_fan_out for nn.Linear, and our families have nothing else.
        *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "task_type", "peft_version"),
        *("lora_dropout", "fan_in_fan_out", "ensure_weight_tying", "megatron_core", "qalora_group_size"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
    }
)
"""Keys that are read here or do not matter. Any other one that is set, of this or a later peft, is refused."""

_UNDERSTOOD_VALUES: Final[Mapping[str, tuple[Any, ...]]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    # The other starts (PiSSA, OLoRA, CorDA, LoftQ) take a part out of the base, which is not in the adapter's files.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}


@dataclass(frozen=True)
class Update:
    """`scale * B @ A`, to be added to one weight; for an embedding its transpose. The names are the file's own."""

    a: str  # (r, in), of an embedding (r, rows)
    b: str  # (out, r), of an embedding (hidden, r)
    scale: float
    transposed: bool


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to the tensors of its base, by the base's names."""

    folder: Path
    base_model: str | None
    """`base_model_name_or_path`, as the trainer wrote it."""
    tensors: Mapping[str, TensorInfo]
    """The adapter's own, by its own names."""
    replaced: Mapping[str, str]
    """Tensor of the adapter that stands in the place of the base's."""
    updates: Mapping[str, Update]
    """Applied after any replacement."""


@dataclass(frozen=True)
class _Scales:
    """Rank and alpha: what the configuration says for all modules, and for those of some names."""

    rank: int
    ranks: Patterns
    alpha: float
    alphas: Patterns
    rank_stabilized: bool

    @classmethod
    def read(cls, config: Fields) -> Self:
        return cls(
            rank=config.size("r", 8),
            ranks=read_patterns(config, "rank_pattern", whole=True),
            alpha=config.positive("lora_alpha", 8.0),
            alphas=read_patterns(config, "alpha_pattern", whole=False),
            rank_stabilized=config.flag("use_rslora"),
        )


def read_adapter(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
) -> Adapter:
    """Read an adapter's configuration and headers, and hold them against a base.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        shapes: every tensor of the base; of a tied one the head, too, as peft may have trained it apart.

    Raises:
        HermetiqError: the adapter uses something that has no exact merge here.
        Refusal: `source-incomplete`, the files are unreadable or do not fit the base.
    """
    config = _read_config(folder)
    tensors = _read_weights(folder)
    replaced, factors = _sort(tensors, shapes)
    _require_declared(config, shapes, replaced.keys() | factors.keys())
    scales = _Scales.read(config)
    updates = {}
    for name, (a, b) in factors.items():
        below = tensors[replaced[name]].shape if name in replaced else shapes[name]
        updates[name] = _update(name, (a, b), below, tensors, scales)
    stated = config.raw.get("base_model_name_or_path")
    return Adapter(folder, stated if isinstance(stated, str) else None, tensors, replaced, updates)


def _read_config(folder: Path) -> Fields:
    raw, findings = read_json(folder, CONFIG)
    if findings:
        raise Refusal(*findings)
    if raw is None:
        repair = f"Give the folder that holds {CONFIG} as --adapter."
        raise Refusal(incomplete(CONFIG, found="no such file", expected="a LoRA in peft's layout", repair=repair))
    for key, value in raw.items():
        allowed = _UNDERSTOOD_VALUES.get(key)
        if (value and key not in _UNDERSTOOD) or (allowed is not None and value not in allowed):
            raise HermetiqError(
                f"the adapter uses {key} ({value!r:.60}), which has no exact merge here",
                where=str(folder / CONFIG),
                remedy="merge it with peft, save the whole model, and open that",
            )
    return Fields(raw, CONFIG)


def _read_weights(folder: Path) -> dict[str, TensorInfo]:
    if not (folder / WEIGHTS).exists():
        pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        found = f"pickled weights only: {listed(pickled)}" if pickled else "no such file"
        raise Refusal(incomplete(WEIGHTS, found=found, expected="the adapter's weights in safetensors"))
    tensors, findings = read_header(folder, WEIGHTS)
    if findings := (*findings, *quantized(folder, {}, tensors)):
        raise Refusal(*findings)
    return tensors


def _sort(
    tensors: Collection[str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Whole weights and pairs of factors by the base's tensor names; refuses what belongs to no tensor."""
    replaced: dict[str, str] = {}
    factors: dict[str, tuple[str, str]] = {}
    strange = []
    for own in tensors:
        if any(own.endswith(copy) and own.removesuffix(copy) + ".weight" in tensors for copy in _COPIES):
            continue
        target, pair = _target(own.removeprefix(_PREFIX))
        halved = pair is not None and any(_PREFIX + each not in tensors for each in pair)
        twice = pair is None and target in replaced
        if not own.startswith(_PREFIX) or target not in shapes or halved or twice:
            strange.append(own)
        elif pair is None:
            replaced[target] = own
        else:
            factors[target] = (_PREFIX + pair[0], _PREFIX + pair[1])
    if strange:
        found = f"no place in the base for {listed(strange)}"
        raise Refusal(incomplete(WEIGHTS, found=found, expected="whole pairs of factors for tensors of the base"))
    return replaced, factors


def _target(name: str) -> tuple[str, tuple[str, str] | None]:
    """The base tensor that an adapter tensor is for, and both names of its pair if it is a factor."""
    for suffixes in (_LINEAR, _EMBEDDING):
        for suffix in suffixes:
            if name.endswith(suffix):
                module = name.removesuffix(suffix)
                return f"{module}.weight", (module + suffixes[0], module + suffixes[1])
    return (name.removesuffix(_WHOLE) + ".weight" if name.endswith(_WHOLE) else name), None


def _update(
    name: str,
    pair: tuple[str, str],
    shape: tuple[int, ...],
    tensors: Mapping[str, TensorInfo],
    scales: _Scales,
) -> Update:
    """The update of one weight, its factors' shapes held against rank and weight."""
    a, b = pair
    transposed = a.endswith(_EMBEDDING[0])
    module = name.removesuffix(".weight")
    rank = int(scales.ranks.value_for(module, scales.rank))
    alpha = scales.alphas.value_for(module, scales.alpha)
    outer = shape[::-1] if transposed else shape
    rows = (tensors[a].shape[1:] if transposed else tensors[b].shape[:1]) if name in (EMBEDDING, HEAD) else shape[:1]
    if rows != shape[:1]:
        raise Refusal(
            finding(
                "adapter-vocab",
                file=WEIGHTS,
                field=module,
                found=f"factors for {listed(map(str, rows))} rows",
                expected=f"{shape[0]} rows, as in the base",
            )
        )
    if (*tensors[b].shape, *tensors[a].shape) != (*outer[:1], rank, rank, *outer[1:]):
        found = f"factors {tensors[a].shape} and {tensors[b].shape} of rank {rank}"
        raise Refusal(incomplete(WEIGHTS, field=module, found=found, expected=f"an update of {shape}"))
    return Update(a, b, alpha / (math.sqrt(rank) if scales.rank_stabilized else rank), transposed)


def _require_declared(config: Fields, shapes: Mapping[str, tuple[int, ...]], touched: Collection[str]) -> None:
    """Refuse an adapter whose file lacks a module that its configuration says was trained."""
    excluded = bool(config.raw.get("exclude_modules"))
    for key in ("target_modules", "modules_to_save"):
        declared = config.raw.get(key)
        # A text is a pattern for peft's search at training time; it may match anything or nothing.
        for module in declared if isinstance(declared, list) else ():
            ending = f".{module}.weight"
            here = {name for name in shapes if f".{name}".endswith(ending)}
            if here and here.isdisjoint(touched) and not excluded:
                raise Refusal(
                    incomplete(WEIGHTS, found=f"nothing for {module}", expected=f"what {key} says was trained")
                )
