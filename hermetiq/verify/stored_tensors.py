"""Is every tensor of the source in the artifact? By names alone, so also where our own reader refuses the file.

Libraries load what they know and drop or invent the rest without a word (U30): a file that lacks a tensor may open in
one runtime and answer nonsense in another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from hermetiq.checkpoint.gguf_header import read_header
from hermetiq.checkpoint.shards import listed, read_every_file
from hermetiq.errors import Refusal
from hermetiq.formats import exl2_plan, linear_plan
from hermetiq.formats.gguf.names import gguf_names
from hermetiq.formats.linear_plan import linears
from hermetiq.model import ModelConfig
from hermetiq.quantize.ladder import LADDER
from hermetiq.quantize.spec import Spec
from hermetiq.verification import Check

from .judge import Findings

LOST: Final = "tensors-lost"


def lost(path: Path, spec: Spec, model: ModelConfig) -> Findings:
    """The check `tensors-lost` of one artifact; nothing where it cannot be read, which its contract's check tells.

    Args:
        path: the file, or the folder of safetensors.
        model: the source's shape, each tensor of which must be there in every one of its parts.

    Raises:
        Refusal: `group-shape`, the format cannot hold this model.
    """
    planned = list(_PLANNED[spec.format](model, spec))
    stored = _stored(path)
    if not stored:
        return Findings()
    missing = [name for name in planned if name not in stored]
    reason = f"{len(missing)} of {len(planned)} tensors are not in the file: {listed(missing)}" if missing else ""
    return Findings((Check(LOST, not missing, len(missing), 0, reason),))


def _stored(path: Path) -> frozenset[str]:
    """Names as the artifact has them; none where it cannot be read."""
    if path.is_dir():
        return frozenset(read_every_file(path)[0])
    try:
        return frozenset(read_header(path).tensors)
    except Refusal:
        return frozenset()


def _linear(model: ModelConfig, spec: Spec) -> Iterable[str]:
    return (tensor.name for tensor in linear_plan.plan(model, spec).tensors)


def _mixed(model: ModelConfig, spec: Spec) -> Iterable[str]:
    """A layer has the same parts in every width."""
    rungs = dict.fromkeys(linears(model), LADDER[0])
    return (tensor.name for tensor in exl2_plan.allocated(exl2_plan.plan(model, spec), rungs).tensors)


_PLANNED: Final[Mapping[str, Callable[[ModelConfig, Spec], Iterable[str]]]] = {
    "gguf": lambda model, _: gguf_names(model).values(),
    "gptq": _linear,
    "awq": _linear,
    "exl2": _mixed,
}
"""Names that an artifact must have, by format of the spec."""
