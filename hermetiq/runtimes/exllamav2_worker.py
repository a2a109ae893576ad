"""The child process that loads an artifact with exllamav2 on a GPU, and writes down what it computes.

Run as a script by `packages.py`, with the same request and answers as `package_worker.py`. Model, cache and tokenizer
are exllamav2's own, so nothing of transformers is used. The weights come first, each linear loaded by itself: a whole
model keeps the matrices of its MLPs in another order, which saves it a permutation.

It was written from the package's source, and has not yet run on a GPU.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer
from exllamav2.linear import ExLlamaV2Linear

PAGE = 256
"""The length of a cache is a multiple of it."""


def weight_digests(config: Any) -> dict[str, str]:
    """SHA-256 of every quantized linear as the package's own kernel reconstructs it: (out, in) float16, unpadded."""
    model = ExLlamaV2(config)
    model.load(lazy=True)
    found = {}
    for name, module in model.modules_dict.items():
        if isinstance(module, ExLlamaV2Linear):
            module.load()
            if module.is_quant():
                matrix = module.get_weight_tensor_dq().cpu().T  # (out, in), out padded to a multiple of 32
                rows = matrix[: len(matrix) - module.padding].contiguous()
                found[f"{name}.weight"] = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
            module.unload()
    return found


def read(model: Any, cache: Any, ids: list[int], *, last: bool = False) -> Any:  # (tokens, vocabulary) float32
    """What the model expects after each of `ids`, or after the last alone, behind what the cache holds."""
    logits = model.forward(torch.tensor([ids]), cache, last_id_only=last)[0]
    return logits[:, : model.config.vocab_size].float().cpu()


def logits_at(model: Any, cache: Any, rows: list[list[int]], positions: list[tuple[int, int]]) -> np.ndarray:
    """What the model expects after each (row, position): (positions, vocabulary) float32; every row is read once."""
    found: dict[tuple[int, int], Any] = {}
    for row in sorted({row for row, _ in positions}):
        cache.current_seq_len = 0
        table = read(model, cache, rows[row])
        found |= {(row, position): table[position] for other, position in positions if other == row}
    return torch.stack([found[place] for place in positions]).numpy()


def generate(model: Any, cache: Any, prompt: list[int], stops: list[int], limit: int) -> list[int]:
    """Continue the prompt greedily; the answer ends with the id that ended it."""
    cache.current_seq_len = 0
    answer: list[int] = []
    ids = prompt
    while len(answer) < limit and not (answer and answer[-1] in stops):
        answer.append(int(read(model, cache, ids, last=True)[-1].argmax()))
        ids = answer[-1:]
    return answer


def stop_ids(config: Any) -> list[int]:
    """The ids that the package takes from the artifact's files: the generation settings' list, else the model's one."""
    listed: list[int] | None = getattr(config, "generation_config", {}).get("eos_token_id")
    return listed or [config.eos_token_id]


def tokenize(config: Any, texts: list[str]) -> dict[str, Any]:
    """Ids of the texts by the package's own tokenizer, or why it cannot read the artifact's."""
    try:
        tokenizer = ExLlamaV2Tokenizer(config)
        return {"tokens": [tokenizer.encode(text, encode_special_tokens=True)[0].tolist() for text in texts]}
    except Exception as error:  # Whatever it is, it is the answer.
        return {"tokens": None, "tokenizer_error": f"{type(error).__name__}: {error}"}


def main() -> None:
    place = Path(sys.argv[1])
    request = json.loads((place / "request.json").read_text(encoding="utf-8"))
    config = ExLlamaV2Config(request["folder"])
    config.arch_compat_overrides()
    weights = weight_digests(config)
    model = ExLlamaV2(config)
    model.load()
    rows, prompts, limit = request["rows"], request["prompts"], request["max_tokens"]
    longest = max(*map(len, rows), *(len(prompt) + limit for prompt in prompts))
    cache = ExLlamaV2Cache(model, max_seq_len=-(-longest // PAGE) * PAGE)
    positions = [(row, position) for row, position in request["positions"]]
    np.save(place / "logits.npy", logits_at(model, cache, rows, positions), allow_pickle=False)
    stops = stop_ids(config)
    answers = [generate(model, cache, prompt, stops, limit) for prompt in prompts]
    result = {"stops": stops, "answers": answers, "weights": weights, **tokenize(config, request["texts"])}
    (place / "answers.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
