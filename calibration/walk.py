"""A forward pass that holds one decoder block at a time, so that a 7B model is read with the memory of a small one.

The blocks are transformers' own. A skeleton of the model lives on the meta device with stubs in place of its layers;
they record what each layer is called with (masks, positions, rotary embeddings, which may differ by layer), so that
none of it is computed here a second time and differently. Then each real block is filled from the checkpoint, run over
all rows, and dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from hermetiq.errors import HermetiqError
from hermetiq.lanes import Lanes, lanes
from hermetiq.machine import give_back_memory
from hermetiq.model import EMBEDDING, HEAD, block_prefix

from .sums import Precision, products, rounding

Load = Callable[[str], Tensor]
"""A tensor of the checkpoint by its Hugging Face name."""

_FAMILIES = {
    "llama": ("LlamaConfig", "LlamaModel"),
    "mistral": ("MistralConfig", "MistralModel"),
    "qwen2": ("Qwen2Config", "Qwen2Model"),
    "qwen3": ("Qwen3Config", "Qwen3Model"),
}
_BATCH_TOKENS = 1024
"""Tokens that go through a block together, padding included: enough to keep matrix products busy."""


def final_hidden(
    config: Mapping[str, Any],
    load: Load,
    rows: Sequence[Sequence[int]],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    precision: Precision = "float32",
    on_block: Callable[[int, int], None] | None = None,
) -> list[Tensor]:
    """Hidden states after the final norm, each (tokens, hidden) on `device`, in the order of `rows`.

    Args:
        config: the model's `config.json`.
        rows: token ids, of any lengths; each row is a text of its own that begins at position 0.
        dtype: weights and states are computed in it, whatever the checkpoint stores.
        precision: of the matrix products.
        on_block: told after each block how many are done, and of how many.

    Raises:
        HermetiqError: a `model_type` whose layers are not known here.
    """
    walk = Walk(config, load, torch.device(device), dtype)
    batches = batched(rows)
    states = walk.embed(rows, batches)
    with lanes(walk.device) as side, products(precision):
        for index, block in enumerate(walk.blocks()):
            walk.advance(index, block, states, precision, side)
            if on_block is not None:
                on_block(index + 1, walk.depth)
    hidden = {
        row: state[place, : len(rows[row])]
        for batch, state in zip(batches, walk.normalised(states), strict=True)
        for place, row in enumerate(batch)
    }
    return [hidden[row] for row in range(len(rows))]


def head(
    config: Mapping[str, Any],
    load: Load,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Callable[[Tensor], Tensor]:
    """The output matrix as a function of final states (tokens, hidden) to logits (tokens, vocabulary).

    Give it a stretch of tokens at a time: with 150,000 rows a thousand tokens' logits take 600 MB.
    """
    weight = head_matrix(config, load).to(device, dtype)

    def logits(hidden: Tensor) -> Tensor:
        return hidden @ weight.T

    return logits


def head_matrix(config: Mapping[str, Any], load: Load) -> Tensor:  # (vocabulary, hidden)
    """The output matrix as it is stored; the embedding where the head is tied to it."""
    return load(EMBEDDING if config.get("tie_word_embeddings") else HEAD)


class _Recorder(nn.Module):
    """Stands in for a decoder layer and keeps the keyword arguments of its last call."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {}

    def forward(self, hidden: Tensor, **arguments: Any) -> Tensor:
        self.arguments = arguments
        return hidden


class Walk:
    """The model without its weights, and its blocks one after another with them."""

    def __init__(self, config: Mapping[str, Any], load: Load, device: torch.device, dtype: torch.dtype) -> None:
        self._load, self.device, self._dtype = load, device, dtype
        self._skeleton = _skeleton(config)
        # Rotary frequencies are computed, not stored: the skeleton's lie on the meta device.
        rotary = type(self._skeleton.rotary_emb)(self._skeleton.config)
        self._skeleton.rotary_emb = rotary.to(device)
        self._fill(self._skeleton.norm, "model.norm.")
        self._layers = list(self._skeleton.layers)
        self._stubs = [_Recorder() for _ in self._layers]
        self._skeleton.layers = nn.ModuleList(self._stubs)
        self._arguments: dict[tuple[int, int], list[dict[str, Any]]] = {}

    @property
    def depth(self) -> int:
        return len(self._stubs)

    @torch.no_grad()
    def embed(self, rows: Sequence[Sequence[int]], batches: Sequence[Sequence[int]]) -> list[Tensor]:
        """First states of each batch, (rows, longest row, hidden); rows end in padding."""
        weight = self._load(EMBEDDING)
        states = []
        for batch in batches:
            # Attention is causal: padding behind a row changes nothing in the row, so it needs no mask.
            ids = nn.utils.rnn.pad_sequence([torch.tensor(rows[row]) for row in batch], batch_first=True)
            states.append(weight[ids].to(self.device, self._dtype))
            # Here and not at the first block, where several threads would ask at once.
            self._arguments_of(states[-1])
        return states

    def blocks(self) -> Iterator[nn.Module]:
        """Each decoder layer with its weights, which go when the next one is asked for."""
        for index, layer in enumerate(self._layers):
            self._fill(layer, block_prefix(index))
            yield layer
            layer.to("meta")
            give_back_memory()

    @torch.no_grad()
    def forward(
        self,
        index: int,
        block: Callable[..., Tensor],
        state: Tensor,  # (rows, tokens, hidden)
        precision: Precision = "float32",
    ) -> Tensor:
        """What block `index`, or what stands in for it, makes of the states; same shape."""
        with rounding(precision, self.device):
            output: Tensor = block(state, **self._arguments_of(state)[index])
        return output

    def advance(self, index: int, block: nn.Module, states: list[Tensor], precision: Precision, side: Lanes) -> None:
        """Let every batch of states give way to what block `index` makes of it, so that they are never held twice."""
        for numbers in side.turns(len(states)):
            calls = [partial(self.forward, index, block, states[number], precision) for number in numbers]
            states[numbers.start : numbers.stop] = side.run(calls)

    @torch.no_grad()
    def normalised(self, states: Sequence[Tensor]) -> list[Tensor]:
        """The final norm of each batch of states."""
        return [self._skeleton.norm(state) for state in states]

    def _arguments_of(self, state: Tensor) -> list[dict[str, Any]]:
        """What the model calls each of its layers with, for states of this shape."""
        rows, tokens = state.shape[:2]
        if (rows, tokens) not in self._arguments:
            self._skeleton(inputs_embeds=state, use_cache=False)
            self._arguments[rows, tokens] = [stub.arguments for stub in self._stubs]
        return self._arguments[rows, tokens]

    def _fill(self, module: nn.Module, prefix: str) -> None:
        """Give a module on the meta device its tensors from the checkpoint."""
        names = [name for name, _ in module.named_parameters()]
        weights = {name: self._load(prefix + name).to(self.device, self._dtype) for name in names}
        module.load_state_dict(weights, assign=True)


def _skeleton(config: Mapping[str, Any]) -> Any:
    """The decoder of the model's family on the meta device."""
    family = config.get("model_type")
    if family not in _FAMILIES:
        raise HermetiqError(f"cannot run the family {family!r}", remedy=f"families: {', '.join(_FAMILIES)}")
    settings, model = (getattr(transformers, name) for name in _FAMILIES[family])
    # Token ids play no part in the layers, and one beyond the vocabulary would stop the constructor.
    read = settings.from_dict({key: value for key, value in config.items() if not key.endswith("_token_id")})
    read._attn_implementation = "sdpa"
    with torch.device("meta"):
        return model(read).eval()


def batched(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of rows that go through a block together, of similar length so that little is padding."""
    batches: list[list[int]] = []
    for row in sorted(range(len(rows)), key=lambda row: len(rows[row])):
        if batches and (len(batches[-1]) + 1) * len(rows[row]) <= _BATCH_TOKENS:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
