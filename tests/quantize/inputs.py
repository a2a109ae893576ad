"""Seeded inputs and weights for the solvers' tests, and a real decoder block to fold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from hermetiq.calibration.statistics import Statistics
from hermetiq.model import ModelConfig
from tests.fixtures.models import ARCHITECTURES, Family, config_document, model_config, random_weights
from tests.fixtures.tokenizers import TokenizerFiles

_BLOCK = "model.layers.0."
_NO_FILES = TokenizerFiles(Path(), tokens=40, eos=2, bos=1, pad=None, generation_eos=2)


def activations(columns: int, *, skew: float = 1.0, dead: int = 0, seed: int = 0) -> Tensor:  # (tokens, columns)
    """Correlated channels: half of what each carries it shares with others.

    Args:
        skew: deviation of the logarithm of a channel's size.
        dead: channels, anywhere, that are never active.
    """
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(columns * 2, max(columns // 8, 1), generator=generator)
    mixed = shared @ torch.randn(shared.shape[1], columns, generator=generator) / shared.shape[1] ** 0.5
    own = torch.randn(columns * 2, columns, generator=generator)
    sizes = (skew * torch.randn(columns, generator=generator)).exp()
    sizes[torch.randperm(columns, generator=generator)[:dead]] = 0.0
    return (mixed + 0.7 * own) * sizes


def weights(out: int, columns: int, *, seed: int = 0) -> Tensor:  # (out, columns)
    """Normal, with one weight in a hundred an outlier."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(out, columns, generator=generator)
    return 0.05 * torch.where(torch.rand(out, columns, generator=generator) < 0.01, 4 * noise, noise)


def statistics(gram: Tensor) -> Statistics:
    """Statistics with this Gram matrix; solvers look at nothing else."""
    return Statistics(gram.float(), max_abs=1.0, tokens=len(gram))


def observed(inputs: Tensor, device: torch.device | str = "cpu") -> Statistics:
    return statistics((inputs.T @ inputs).to(device))


def with_eigenvalues(*values: float) -> Tensor:
    """A matrix with these eigenvalues in no particular basis, scaled to a mean diagonal of one."""
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(5)))
    gram = (basis * torch.tensor(values)) @ basis.T
    return (gram + gram.T) / (2 * gram.diagonal().mean())


@dataclass(frozen=True)
class Block:
    """A one-layer model of transformers with random weights; its output shows what its block computes."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    """Of the whole model, float64."""

    @property
    def model(self) -> ModelConfig:
        return model_config(self.config)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The block's own, by their names below it."""
        return {name.removeprefix(_BLOCK): value for name, value in self.weights.items() if name.startswith(_BLOCK)}

    def output(self, tensors: dict[str, Tensor] | None = None) -> Tensor:
        """Logits on fixed tokens, with `tensors` in the place of the block's own."""
        return self._run(tensors or {})[0]

    def inputs(self) -> dict[str, Tensor]:  # each (tokens, in)
        """What each linear of the block is given, by its weight's name."""
        return self._run({})[1]

    def _run(self, tensors: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        config = transformers.AutoConfig.for_model(**self.config)
        model = getattr(transformers, ARCHITECTURES[self.config["model_type"]])(config).double()
        model.load_state_dict(self.weights | {_BLOCK + name: value.double() for name, value in tensors.items()})
        seen: dict[str, Tensor] = {}
        for name, module in model.model.layers[0].named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(
                    lambda _, given, name=name: seen.update({f"{name}.weight": given[0].flatten(0, 1)})
                )
        ids = torch.randint(40, (4, 50), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            return model(ids).logits, seen


def block(family: Family, *, hidden: int = 64, heads: int = 4, kv_heads: int = 2, **config: Any) -> Block:
    """A block with weights large enough for attention to choose and gates to close, and uneven channels."""
    document = config_document(
        _NO_FILES,
        family=family,
        hidden=hidden,
        intermediate=96,
        heads=heads,
        kv_heads=kv_heads,
        layers=1,
        tied=False,
        rows=40,
        dtype=torch.float64,
    )
    document |= config
    tensors = random_weights(document, seed=3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    for name, value in tensors.items():
        if "norm" in name:
            tensors[name] = value * torch.randn(value.shape, generator=generator, dtype=value.dtype).exp()
        else:
            tensors[name] = value * 8
    return Block(document, tensors)
