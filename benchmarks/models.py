"""A real chat model moved off the grid it was published on: `python -m benchmarks.models NAME …`.

SmolLM2-135M-Instruct comes as Q4_1, so its weights lie on a grid of 4 bits in groups of 32, which flatters any grid of
that kind. Each variant here is a folder as published models are, in float32 so that nothing else moved:

- `scaled`: the same function. Random positive factors go through the norms into the linears behind them, from v into o
  and from up into down, so that columns are uneven, as they are in larger models.
- `dithered`: a model of its own, close to the first. Uniform noise of half a grid step on each quantized weight makes
  the distribution within a group natural again.
- `scaled-padded`, `dithered-padded`: the same functions with 768 channels in place of 576, which K-quants and groups
  of 128 divide. Every fourth channel is zero.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from math import sqrt
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from hermetiq import demo
from hermetiq.checkpoint import Checkpoint, open_checkpoint
from hermetiq.checkpoint.gguf_header import read_header
from hermetiq.formats.gguf import names
from hermetiq.model import ModelConfig, block_prefix
from hermetiq.verify import fidelity, reference
from hermetiq.verify.reading import read_rows

CACHE: Final = Path(__file__).resolve().parents[1] / ".cache" / "bench"
SEED: Final = 0
SPREAD: Final = 0.3
"""Deviation of the logarithm of the factors."""
SAME: Final = 1e-5
"""KL per token, in nats, below which two models are one function: float32 rounding stays a hundred times lower."""
MIXERS: Final = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATES: Final = ("mlp.gate_proj", "mlp.up_proj")

Weights = dict[str, Tensor]
"""Every tensor of a model by its Hugging Face name."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model before it is written: what of `config.json` changes, and every tensor in float32."""

    config: Mapping[str, Any]
    weights: Weights


def make(name: str, place: Path = CACHE) -> Path:
    """The folder of a variant, made on first use."""
    folder = place / name
    if not folder.exists():
        source = open_checkpoint(demo.model())
        write(folder, source, VARIANTS[name](source))
    return folder


def moved(name: str, place: Path = CACHE, *, chats: int = 3) -> float:
    """KL of a variant against the model it claims to equal, the dithered one against what it was made from.

    Raises:
        SystemExit: it claims the same function and is none.
    """
    origin = open_checkpoint(ORIGINS[name](place))
    rows = reference.read(origin).rows[:chats]
    before, after = (read_rows(model, rows) for model in (origin, open_checkpoint(make(name, place))))
    found = fidelity.compare(
        list(zip(rows, before.states, strict=True)),
        list(zip(rows, after.states, strict=True)),
        source_logits=before.logits,
        artifact_logits=after.logits,
        ends=[],
        terminator=0,
    )
    if name != "dithered" and found.kl_mean > SAME:
        raise SystemExit(f"{name}: KL {found.kl_mean:.2g} from the model that it should equal, at most {SAME:g}")
    return found.kl_mean


def scaled(model: ModelConfig, weights: Weights, generator: torch.Generator) -> Weights:
    """The same function with factors exp(N(0, SPREAD)) on every channel between two linear maps."""
    moved = dict(weights)

    def factors(count: int) -> Tensor:
        return (SPREAD * torch.randn(count, generator=generator)).exp()

    for index in range(model.layers):
        block = block_prefix(index)
        for norm, readers in (("input_layernorm", MIXERS), ("post_attention_layernorm", GATES)):
            factor = factors(model.hidden)
            moved[f"{block}{norm}.weight"] = moved[f"{block}{norm}.weight"] * factor
            for reader in readers:
                moved[f"{block}{reader}.weight"] = moved[f"{block}{reader}.weight"] / factor
        # Each key-value head is read by as many heads of o as there are query heads to it.
        value = factors(model.kv_heads * model.head_dim)
        read = value.view(model.kv_heads, -1).repeat_interleave(model.heads // model.kv_heads, dim=0).flatten()
        inner = factors(model.intermediate)
        for writer, reader, written, seen in (
            ("self_attn.v_proj", "self_attn.o_proj", value, read),
            ("mlp.up_proj", "mlp.down_proj", inner, inner),
        ):
            moved[f"{block}{writer}.weight"] = moved[f"{block}{writer}.weight"] * written[:, None]
            moved[f"{block}{reader}.weight"] = moved[f"{block}{reader}.weight"] / seen
    return moved


def dithered(weights: Weights, steps: Weights, generator: torch.Generator) -> Weights:
    """Weights with uniform noise of half a grid step to either side where `steps` has a tensor of them."""
    noise = {name: (torch.rand(step.shape, generator=generator) - 0.5) * step for name, step in steps.items()}
    return weights | {name: weights[name] + part for name, part in noise.items()}


def padded(model: ModelConfig, weights: Weights) -> tuple[dict[str, Any], Weights]:
    """The same function, a third wider, as changes to `config.json` and all tensors.

    Every fourth channel of the residual stream is zero, and so is every fourth head. A norm's mean of squares then runs
    over more channels than have any, which its weights and its epsilon make good.
    """
    hidden, heads, kv_heads = (_wider(count) for count in (model.hidden, model.heads, model.kv_heads))
    share = model.hidden / hidden
    channels = torch.tensor([channel for channel in range(hidden) if channel % 4 != 3])
    # A query head reads the key-value head of its group: groups stay whole, and the empty ones stand last.
    widths = {
        "q_proj": heads * model.head_dim,
        "k_proj": kv_heads * model.head_dim,
        "v_proj": kv_heads * model.head_dim,
    }
    wide = {}
    for name, weight in weights.items():
        kind = name.split(".")[-2]
        if kind.endswith("norm"):
            wide[name] = torch.ones(hidden)
            wide[name][channels] = weight * sqrt(share)
        elif kind in ("o_proj", "down_proj"):
            columns = heads * model.head_dim if kind == "o_proj" else weight.shape[1]
            wide[name] = torch.zeros(hidden, columns)
            wide[name][channels, : weight.shape[1]] = weight
        else:
            wide[name] = torch.zeros(widths.get(kind, weight.shape[0]), hidden)
            wide[name][: weight.shape[0], channels] = weight
    changes = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": model.head_dim,
        "rms_norm_eps": model.norm_eps * share,
    }
    return changes, wide


def grid_steps(path: Path, model: ModelConfig) -> Weights:
    """The step between two codes at each weight of the Q4_1 tensors of a GGUF file, in Hugging Face's row order."""
    stored = read_header(path).tensors
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q4_1]
    steps = {}
    for ours, theirs in names.gguf_names(model).items():
        tensor = stored.get(theirs)
        if tensor is None or tensor.type is not gguf.GGMLQuantizationType.Q4_1:
            continue
        with path.open("rb") as file:
            file.seek(tensor.start)
            blocks = np.fromfile(file, np.uint8, tensor.size).reshape(-1, size)
        # A block begins with its step in float16.
        step = torch.from_numpy(blocks[:, :2].copy().view(np.float16).astype(np.float32))
        rows = step.repeat_interleave(block, dim=1).reshape(tensor.shape)
        order = names.row_order(model, ours)
        steps[ours] = rows if order is None else torch.empty_like(rows).index_copy_(0, torch.from_numpy(order), rows)
    return steps


def write(folder: Path, source: Checkpoint, variant: Variant) -> None:
    """A model folder as they are published: weights, both configurations, tokenizer and template."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config = {**source.config, **variant.config, "torch_dtype": "float32", "dtype": "float32"}
    ids: dict[str, Any] = {
        key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config
    }
    (template,) = source.templates.values()
    tokenizer = source.tokenizer
    documents: dict[str, Mapping[str, Any]] = {
        "config.json": config,
        "generation_config.json": {"_from_model_config": True, **ids},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "pad_token": tokenizer.pad_token,
            "unk_token": tokenizer.unk_token,
            "clean_up_tokenization_spaces": False,
            "model_max_length": source.model.context_length,
            "chat_template": template,
        },
    }
    for name, document in documents.items():
        (partial / name).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (partial / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer.backend.save(str(partial / "tokenizer.json"))
    save_file(variant.weights, partial / "model.safetensors", metadata={"format": "pt"})
    partial.rename(folder)


def _scaled(source: Checkpoint) -> Variant:
    return Variant({}, scaled(source.model, _loaded(source), torch.Generator().manual_seed(SEED)))


def _dithered(source: Checkpoint) -> Variant:
    steps = grid_steps(source.path, source.model)
    return Variant({}, dithered(_loaded(source), steps, torch.Generator().manual_seed(SEED)))


def _padded(narrow: Callable[[Checkpoint], Variant]) -> Callable[[Checkpoint], Variant]:
    def widen(source: Checkpoint) -> Variant:
        return Variant(*padded(source.model, narrow(source).weights))

    return widen


VARIANTS: Final[Mapping[str, Callable[[Checkpoint], Variant]]] = {
    "scaled": _scaled,
    "dithered": _dithered,
    "scaled-padded": _padded(_scaled),
    "dithered-padded": _padded(_dithered),
}

ORIGINS: Final[Mapping[str, Callable[[Path], Path]]] = {
    "scaled": lambda _: demo.model(),
    "dithered": lambda _: demo.model(),
    "scaled-padded": lambda _: demo.model(),
    "dithered-padded": lambda place: make("dithered", place),
}
"""What each variant equals, or was made from."""


def _loaded(source: Checkpoint) -> Weights:
    return {name: source.load(name).float() for name in source.tensors}


def _wider(count: int) -> int:
    if count % 3:
        raise ValueError(f"{count} is no multiple of 3")
    return count // 3 * 4


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", metavar="NAME", help=f"{', '.join(VARIANTS)}; all of them by default")
    for name in parser.parse_args().name or VARIANTS:
        print(f"{make(name)}: KL {moved(name):.2g}", flush=True)
