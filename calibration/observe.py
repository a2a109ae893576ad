"""The one pass of calibration: every block is shown to its visitor with what went into each of its linears.

All formats are made from this pass, so a model is read and run once however many are asked for. Memory is one block,
its statistics, and the hidden states, whatever the model's depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import local
from typing import Any

import torch
from torch import Tensor, nn

from hermetiq.errors import HermetiqError
from hermetiq.lanes import Lanes, lanes
from hermetiq.machine import give_back_memory
from hermetiq.model import HEAD, block_prefix

from .activations import refuse_broken, refuse_overflow
from .sensitivity import Disturb, Probes
from .statistics import Statistics
from .sums import Addend, Precision, Sums, largest, products
from .walk import Load, Walk, batched, head_matrix


@dataclass(frozen=True)
class Block:
    """One decoder block, or the head, with what calibration saw in it. All tensors lie on the walk's device."""

    index: int
    """Number of the decoder block; the model's depth for the head."""
    weights: Mapping[str, Tensor]
    """Every tensor of the block by its Hugging Face name, float32; empty for the head. Not to be written to."""
    inputs: Mapping[str, Statistics]
    """By the name of each linear's weight. Linears that share an input share the object."""
    peaks: Mapping[str, float]
    """Largest |activation| that each module put out, by the module's name, in the order in which they ran."""
    divergences: Mapping[str, float] = field(default_factory=dict)
    """Of the head: mean KL in nats per probe token by the name of the weight that was disturbed (see `sensitivity`)."""


Visit = Callable[[Block], Mapping[str, Tensor] | None]
"""Sees each block once. Where calibration is sequential, tensors that it returns replace the block's own."""


def observe(
    config: Mapping[str, Any],
    load: Load,
    rows: Sequence[Sequence[int]],
    visit: Visit,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    precision: Precision = "auto",
    first_token_weight: int = 1,
    sequential: bool = False,
    start: int = 0,
    replaced: Callable[[int], Mapping[str, Tensor]] | None = None,
    on_block: Callable[[int, int], None] | None = None,
    disturb: Disturb | None = None,
    probe_rows: Sequence[Sequence[int]] = (),
) -> None:
    """Run all rows through the model, a block at a time, and show each block and then the head to `visit`.

    As a rule every block sees the states of the full-precision model. Sequential calibration runs each block once more,
    with the tensors in place that `visit` returned by their Hugging Face names (dequantized weights), and the next
    block sees what the quantized model would.

    Args:
        config: the model's `config.json`.
        rows: token ids, of any lengths; padding enters no statistic.
        dtype: weights and states are computed in it, whatever the checkpoint stores.
        precision: of the matrix products; the same on every run, or a resumed one differs from the first.
        first_token_weight: how often the first token of each row counts in the Gram matrices.
        sequential: run each block again as `visit` made it.
        start: blocks below it are only run, not shown: a resumed calibration, which from there on has the same bits.
        replaced: for those blocks, what `visit` had returned.
        on_block: told after each block how many are done, and of how many.
        disturb: makes of each linear's weight the one whose effect on the logits is measured. It must depend on nothing
            else: a resumed calibration asks again.
        probe_rows: token ids of what the effect is measured on (see `choose_probe_rows`).

    Raises:
        HermetiqError: a `model_type` whose layers are not known here; a replacement that the block has no place for.
        Refusal: `hessian-nan`, with the first module that put out NaN or infinity.
        ValueError: `visit` returned tensors, and the calibration is not sequential; weights are to be disturbed, and it
            is sequential or there are no probe rows.
    """
    if disturb is not None and (sequential or not probe_rows):
        raise ValueError("disturbances are measured on probe rows, and in no sequential calibration")
    walk = Walk(config, load, torch.device(device), dtype)
    batches = batched(rows)
    states = walk.embed(rows, batches)
    real = [_real(state, [len(rows[row]) for row in batch]) for state, batch in zip(states, batches, strict=True)]
    _check_embedding(states, real)
    probes = Probes(walk, probe_rows, disturb) if disturb is not None else None
    with lanes(walk.device) as side:
        calibration = _Calibration(walk, states, real, visit, precision, first_token_weight, sequential, side)
        for index, block in enumerate(walk.blocks()):
            if probes is not None:
                probes.advance(index, block)
            if index < start:
                calibration.run(index, block, replaced(index) if replaced else {})
            else:
                calibration.show(index, block)
            if on_block is not None:
                on_block(index + 1, walk.depth)
        if start <= walk.depth:
            divergences = {} if probes is None else probes.divergences(head_matrix(config, load).to(walk.device, dtype))
            calibration.show_head(divergences)


@dataclass(frozen=True)
class _Calibration:
    """The states of all rows on their way through the blocks."""

    walk: Walk
    states: list[Tensor]
    """By batch, (rows, tokens, hidden); each gives way to what comes after it, so they are never held twice."""
    real: Sequence[Tensor | None]
    visit: Visit
    precision: Precision
    first_token_weight: int
    sequential: bool
    side: Lanes

    def run(self, index: int, block: nn.Module, replacement: Mapping[str, Tensor]) -> None:
        """Take the states through the block, with some of its tensors replaced."""
        _replace(block, block_prefix(index), replacement)
        with products(self.precision):
            self.walk.advance(index, block, self.states, self.precision, self.side)

    def show(self, index: int, block: nn.Module) -> None:
        """Take the states through the block and let the visitor see it."""
        recorder = _Recorder(block_prefix(index))
        with products(self.precision), recorder.listening(block):
            for numbers in self.side.turns(len(self.states)):
                calls = [partial(self._hear, recorder, index, block, number) for number in numbers]
                recorder.add(self.side.run(calls), self.side)
        peaks, inputs = recorder.sound()
        # Each lane keeps what it freed, and the visitor needs the room.
        give_back_memory()
        weights = {block_prefix(index) + name: value.detach().float() for name, value in block.named_parameters()}
        replacement = self.visit(Block(index, weights, inputs, peaks))
        if self.sequential:
            self.run(index, block, replacement or {})
        elif replacement is not None:
            raise ValueError("replacements are for sequential calibration")

    def show_head(self, divergences: Mapping[str, float]) -> None:
        """Let the visitor see what goes into the head. Logits are not computed: they would cost more than a block."""
        recorder = _Recorder("")
        with products(self.precision):
            for state, real in zip(self.states, self.real, strict=True):
                (final,) = self.walk.normalised([state])
                ear = _Ear(real, self.first_token_weight)
                ear.output("model.norm", final)
                ear.input(HEAD, final)
                recorder.add([ear], self.side)
        peaks, inputs = recorder.sound()
        self.visit(Block(self.walk.depth, {}, inputs, peaks, divergences))

    def _hear(self, recorder: _Recorder, index: int, block: nn.Module, number: int) -> _Ear:
        """One batch through the block; where calibration is sequential it goes on from the quantized block's."""
        recorder.here.ear = ear = _Ear(self.real[number], self.first_token_weight)
        after = self.walk.forward(index, block, self.states[number], self.precision)
        del recorder.here.ear
        if not self.sequential:
            self.states[number] = after
        return ear


class _Ear:
    """Hears one batch: what goes into each linear of a block and what each module puts out."""

    def __init__(
        self,
        real: Tensor | None,  # (rows, tokens) bool, false at padding; None where there is no padding
        first_token_weight: int = 1,
    ) -> None:
        self._real, self._first_token_weight = real, first_token_weight
        self._last: tuple[str, Tensor] | None = None
        self.addends: dict[str, Addend] = {}
        self.leader: dict[str, str] = {}
        """By the name of each linear's weight, that of the first which had the same input."""
        self.peaks: dict[str, Tensor] = {}

    def input(
        self,
        weight: str,
        value: Tensor,  # (rows, tokens, in)
    ) -> None:
        # Linears that share an input are called one after another with the very same tensor.
        if self._last is None or self._last[1] is not value:
            self._last = (weight, value)
            self.addends[weight] = Addend.of(self._tokens(value), self._roots(value))
        self.leader[weight] = self._last[0]

    def output(
        self,
        module: str,
        value: Tensor,  # (rows, tokens, …)
    ) -> None:
        self.peaks[module] = largest(self._tokens(value))

    def _tokens(self, value: Tensor) -> Tensor:
        return value.flatten(0, 1) if self._real is None else value[self._real]

    def _roots(self, value: Tensor) -> Tensor | None:
        if self._first_token_weight == 1:
            return None
        roots = torch.ones(value.shape[:2], device=value.device)
        roots[:, 0] = self._first_token_weight**0.5
        return self._tokens(roots)


class _Recorder:
    """Adds up what the ears of a block's batches have heard."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._sums: dict[str, Sums] = {}
        self._leader: dict[str, str] = {}
        self._peaks: dict[str, Tensor] = {}
        self.here = local()
        """`here.ear` listens to the batch that this thread takes through the block."""

    @contextmanager
    def listening(self, block: nn.Module) -> Iterator[None]:
        """Let every thread's ear hear what it runs through the block while inside."""
        hooks = []
        for name, module in block.named_modules():
            full = (self._prefix + name).rstrip(".")
            if isinstance(module, nn.Linear):
                hooks.append(module.register_forward_pre_hook(self._input_hook(f"{full}.weight")))
            hooks.append(module.register_forward_hook(self._output_hook(full)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def add(self, ears: Sequence[_Ear], side: Lanes) -> None:
        """Add what was heard, batch after batch: sums do not depend on who was done first."""
        panels: list[Callable[[], None]] = []
        for ear in ears:
            self._leader |= ear.leader
            for name, peak in ear.peaks.items():
                self._peaks[name] = torch.maximum(self._peaks[name], peak) if name in self._peaks else peak
        for weight, addend in ears[0].addends.items():
            if weight not in self._sums:
                self._sums[weight] = Sums(addend)
            panels += self._sums[weight].adding([ear.addends[weight] for ear in ears])
        side.run(panels)

    def sound(self) -> tuple[dict[str, float], dict[str, Statistics]]:
        """Peaks by module and statistics by the name of each linear's weight; nothing more may be recorded.

        Raises:
            Refusal: `hessian-nan`.
        """
        peaks = {name: float(peak) for name, peak in self._peaks.items()}
        refuse_broken(peaks)
        made = {weight: sums.statistics() for weight, sums in self._sums.items()}
        inputs = {weight: made[leader] for weight, leader in self._leader.items()}
        refuse_overflow(inputs)
        return peaks, inputs

    def _input_hook(self, weight: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, arguments: self.here.ear.input(weight, arguments[0])

    def _output_hook(self, module: str) -> Callable[[nn.Module, Any, Any], None]:
        # Attention returns its weights beside its output.
        return lambda _, __, output: self.here.ear.output(module, output[0] if isinstance(output, tuple) else output)


def _real(state: Tensor, lengths: Sequence[int]) -> Tensor | None:
    """(rows, tokens) bool, false at padding; None where there is none and nothing needs to be picked out."""
    tokens = state.shape[1]
    if min(lengths) == tokens:
        return None
    places = torch.arange(tokens, device=state.device)
    return places < torch.tensor(lengths, device=state.device)[:, None]


def _check_embedding(states: Sequence[Tensor], real: Sequence[Tensor | None]) -> None:
    """Refuse states that are broken before the first block."""
    for state, mask in zip(states, real, strict=True):
        ear = _Ear(mask)
        ear.output("model.embed_tokens", state)
        refuse_broken({name: float(peak) for name, peak in ear.peaks.items()})


def _replace(block: nn.Module, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors in the place of the block's own."""
    own = {prefix + name: value for name, value in block.named_parameters()}
    moved = {}
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise HermetiqError(f"block {prefix.rstrip('.')} has no place for {name} of shape {tuple(tensor.shape)}")
        moved[name.removeprefix(prefix)] = tensor.to(own[name].device, own[name].dtype)
    block.load_state_dict(moved, strict=False, assign=True)
