"""Channel scales that cost nothing: columns of a weight grow, the module before shrinks, the function stays.

AWQ (Lin et al. 2023, section 3.2) protects salient columns by such a fold. The scales are free at inference in every
format, so every format gets them here, and not from a search but from the error they minimise: rounding column j costs
its sensitivity c_j times the square of its group's step over the square of its scale s_j, and a step grows with the
scaled weights of the group. With r_j the root mean square of the column, the sum over j of c_j / s_j² times the sum of
r_j² s_j² is least where s_j = (c_j / r_j²)^(1/4). Measured over nine exponents, no other pair did better.

The module before is a norm (for q, k, v and for gate, up), v for o, and up for down, whose rows are divided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hermetiq.model import ModelConfig

_WIDEST = 16.0
"""Largest factor, and the inverse of the smallest: activations and weights stay well inside float16."""


@dataclass(frozen=True)
class Group:
    """Linear layers of a block that share an input, and the tensors before them that a fold goes into."""

    linears: tuple[str, ...]
    """Names below the block of the weights, in the order in which their rows are joined."""
    before: tuple[str, ...]
    """Tensors whose last step is a product with, or a sum into, what becomes the input: divided by the factors."""
    repeats: bool = False
    """The input repeats what comes out of `before`, once for each query head of a key head (GQA)."""


GROUPS = (
    Group(
        ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"), ("input_layernorm.weight",)
    ),
    Group(("self_attn.o_proj.weight",), ("self_attn.v_proj.weight", "self_attn.v_proj.bias"), repeats=True),
    Group(("mlp.gate_proj.weight", "mlp.up_proj.weight"), ("post_attention_layernorm.weight",)),
    Group(("mlp.down_proj.weight",), ("mlp.up_proj.weight", "mlp.up_proj.bias")),
)
"""Of one decoder block with gated MLP and RMSNorm. All inputs of a block: every linear is in one group."""


@dataclass(frozen=True)
class Folded:
    """A block after its folds."""

    weights: Mapping[str, Tensor]
    """Every tensor of the block, by its name below the block; the block computes what it computed."""
    factors: Mapping[Group, Tensor]
    """By group, what the columns of its weights were multiplied by and its inputs are divided by (in,)."""
    rows: Mapping[str, Tensor]
    """By weight, what its rows were divided by (out,); only where a fold went into them."""


def fold(
    weights: Mapping[str, Tensor],
    sensitivities: Mapping[Group, Tensor],
    model: ModelConfig,
) -> Folded:
    """Choose the factors of every group and move them through a block.

    Args:
        weights: every tensor of the block by its name below it, float32.
        sensitivities: by group, cost of a squared rounding error in each input column (in,).
    """
    factors = {}
    for group in GROUPS:
        joined = torch.cat([weights[name] for name in group.linears])
        factors[group] = balanced(joined, sensitivities[group])
        if group.repeats:
            factors[group] = _repeated(_shared(factors[group], model), model)
    folded, rows = dict(weights), {}
    for group, factor in factors.items():
        for name in group.linears:
            folded[name] = folded[name] * factor
        into = _shared(factor, model) if group.repeats else factor
        for name in group.before:
            if name in folded:
                folded[name] = folded[name] / into.view(-1, *[1] * (folded[name].dim() - 1))
                if folded[name].dim() > 1:
                    rows[name] = into
    return Folded(folded, factors, rows)


def balanced(
    weight: Tensor,  # (out, in)
    sensitivity: Tensor,  # (in,)
) -> Tensor:  # (in,)
    """The factors that minimise the expected error, with a geometric mean of one."""
    energy = weight.square().mean(0)
    known = (energy > 0) & (sensitivity > 0)
    logs = torch.where(known, (sensitivity / energy.clamp(min=torch.finfo(torch.float32).tiny)).log() / 4, 0.0)
    mean = logs.sum() / known.sum().clamp(min=1)
    return torch.where(known, (logs - mean).exp(), 1.0).clamp(1 / _WIDEST, _WIDEST)


def _shared(
    factors: Tensor,  # (heads * head_dim,)
    model: ModelConfig,
) -> Tensor:  # (kv_heads * head_dim,)
    """One factor for all inputs that are the same output of v: their geometric mean."""
    by_head = factors.view(model.kv_heads, model.heads // model.kv_heads, model.head_dim)
    return by_head.log().mean(1).exp().flatten()


def _repeated(
    factors: Tensor,  # (kv_heads * head_dim,)
    model: ModelConfig,
) -> Tensor:  # (heads * head_dim,)
    by_head = factors.view(model.kv_heads, 1, model.head_dim)
    return by_head.expand(-1, model.heads // model.kv_heads, -1).flatten()
