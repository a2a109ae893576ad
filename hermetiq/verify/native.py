"""Answers by an artifact's own weights: transformers' model, filled through our reader, in the memory of this machine.

The walk computes a whole text at once, one block after another; a chat needs one token after another, so all blocks at
the same time. Where they do not fit, nothing is pretended: the note says what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from hermetiq.chat.conversations import Prompt
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.machine import free_memory
from hermetiq.model import EMBEDDING, HEAD

from .observe import ANSWER_TOKENS
from .reference import Reference
from .smoke import Answer, answered, generated

EXACT_WEIGHTS = 1_000_000_000
"""Models of up to so many weights are computed in float32, larger ones in bfloat16; decided by size alone, so that
the same artifact gives the same answers whatever memory happens to be free."""
SHARE = 0.5
"""Of the free memory that the weights may take."""
BATCH = 4
"""Prompts answered side by side: reading the weights is most of the time, and padding the rest."""


def memory_note(checkpoint: Checkpoint) -> str:
    """Why the model does not answer here; empty where it fits."""
    lacking = memory_lacking(checkpoint)
    if not lacking:
        return ""
    return f"smoke was not run natively: {lacking}; a package named by --runtime is asked all the same"


def memory_lacking(checkpoint: Checkpoint) -> str:
    """What `model` needs of this machine's memory and does not find; empty where it fits."""
    needed, free = _bytes(checkpoint), free_memory()
    return "" if needed <= SHARE * free else f"needs {needed / SHARE / 1e9:.1f} GB, {free / 1e9:.1f} GB free"


def model(checkpoint: Checkpoint) -> Any:
    """transformers' causal language model of the family with the checkpoint's weights, in memory as a whole.

    Raises:
        Refusal: a tensor cannot be read.
    """
    # Ids and quantization are the checkpoint's business: here every weight is a plain number.
    plain = {
        key: value
        for key, value in checkpoint.config.items()
        if key != "quantization_config" and not key.endswith("_token_id")
    }
    config: Any = transformers.AutoConfig.for_model(**plain)
    dtype = _dtype(checkpoint)
    with torch.device("meta"):
        built: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    weights = {name: checkpoint.load(name).to(dtype) for name in checkpoint.model.expected_tensors()}
    if checkpoint.model.tied:
        weights[HEAD] = weights[EMBEDDING]
    built.load_state_dict(weights, assign=True)
    # Rotary frequencies are computed, not stored.
    built.model.rotary_emb = type(built.model.rotary_emb)(config)
    module: nn.Module = built.eval()
    return module


def answers(checkpoint: Checkpoint, asked: Reference, tick: Callable[[float], None]) -> tuple[Answer, ...]:
    """Greedy answers to the smoke prompts, each ended by a stop of the source's contract or after `ANSWER_TOKENS`.

    Raises:
        Refusal: a tensor cannot be read.
    """
    if not asked.smoke:
        return ()
    loaded = model(checkpoint)
    tick(0.3)
    found: list[Answer] = []
    for start in range(0, len(asked.smoke), BATCH):
        prompts = asked.smoke[start : start + BATCH]
        for prompt, ids in zip(prompts, _continued(loaded, prompts, asked.contract.stop_ids), strict=True):
            found.append(answered(prompt, generated(ids, asked.contract.stop_ids, checkpoint.tokenizer.decode)))
        tick(0.3 + 0.7 * len(found) / len(asked.smoke))
    return tuple(found)


def _dtype(checkpoint: Checkpoint) -> torch.dtype:
    return torch.float32 if checkpoint.model.weights <= EXACT_WEIGHTS else torch.bfloat16


def _bytes(checkpoint: Checkpoint) -> int:
    return checkpoint.model.weights * _dtype(checkpoint).itemsize


@torch.inference_mode()
def _continued(model: Any, prompts: Sequence[Prompt], stop_ids: Sequence[int]) -> list[tuple[int, ...]]:
    """What each prompt is continued with, its first stop included."""
    ids, mask = _left_padded([prompt.ids for prompt in prompts])
    settings = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=ANSWER_TOKENS, eos_token_id=list(stop_ids), pad_token_id=stop_ids[0]
    )
    output: Tensor = model.generate(ids, attention_mask=mask, generation_config=settings)
    return [_to_first_stop(row, stop_ids) for row in output[:, ids.shape[1] :].tolist()]


def _left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask, each (rows, longest row): an answer must follow its prompt without a gap."""
    longest = max(map(len, rows))
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = torch.tensor(row)
        mask[index, longest - len(row) :] = 1
    return ids, mask


def _to_first_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> tuple[int, ...]:
    """Without the padding behind the stop."""
    end = next((index + 1 for index, token in enumerate(ids) if token in stop_ids), len(ids))
    return tuple(ids[:end])
