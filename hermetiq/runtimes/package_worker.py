"""The child process that loads an artifact with a package as its users do, and writes down what it computes.

Run as a script by `packages.py`, with the Python of that package's environment, so nothing of hermetiq is imported. Its
one argument is a folder with `request.json`; the answers are files beside it, `answers.json` last, because stdout and
stderr belong to the libraries, which are chatty. Everything runs on the CPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch


def load_auto_gptq(folder: str) -> Any:
    """Dequantized by torch in float32: the fused kernels need CUDA."""
    from auto_gptq import AutoGPTQForCausalLM

    model = AutoGPTQForCausalLM.from_quantized(
        folder,
        device="cpu",
        torch_dtype=torch.float32,
        use_safetensors=True,
        use_triton=False,
        disable_exllama=True,
        disable_exllamav2=True,
        inject_fused_attention=False,
        inject_fused_mlp=False,
    )
    return model.model


def load_autoawq(folder: str) -> Any:
    """With its plain linear, which torch dequantizes; on a CPU it would insist on an extension that has ended."""
    import awq.models.base
    import awq.modules.linear.gemm
    from awq import AutoAWQForCausalLM

    awq.models.base.get_best_device = lambda: "cuda:0"
    awq.modules.linear.gemm.TRITON_AVAILABLE = False

    model = AutoAWQForCausalLM.from_quantized(
        folder, fuse_layers=False, device_map={"": "cpu"}, torch_dtype=torch.float16, safetensors=True
    )
    return model.model


def load_gptqmodel(folder: str) -> Any:
    from gptqmodel import BACKEND, GPTQModel

    backend = BACKEND(kernel(folder)[1])
    return GPTQModel.load(folder, device="cpu", backend=backend, dtype=torch.float16).model


def load_transformers(folder: str) -> Any:
    from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

    method, backend = kernel(folder)
    settings = AwqConfig(backend=backend) if method == "awq" else GPTQConfig(bits=4, backend=backend)
    return AutoModelForCausalLM.from_pretrained(
        folder, device_map="cpu", dtype=torch.float16, use_safetensors=True, quantization_config=settings
    )


def kernel(folder: str) -> tuple[str, str]:
    """The artifact's method and the plain torch kernel for it.

    What gptqmodel would choose on a CPU it compiles for minutes first, and for AWQ that one is off by more than a nat.
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    method = config["quantization_config"]["quant_method"]
    return method, "torch_awq" if method == "awq" else "torch"


LOADERS = {
    "auto-gptq": load_auto_gptq,
    "autoawq": load_autoawq,
    "gptqmodel": load_gptqmodel,
    "transformers": load_transformers,
}


def logits_at(model: Any, rows: list[list[int]], positions: list[tuple[int, int]]) -> np.ndarray:  # (positions, tokens)
    """What the model expects after each (row, position), in float32; every row is read once."""
    found: dict[tuple[int, int], Any] = {}
    for row in sorted({row for row, _ in positions}):
        table = model(input_ids=torch.tensor([rows[row]]), use_cache=False).logits[0]
        found |= {(row, position): table[position].float() for other, position in positions if other == row}
    return torch.stack([found[place] for place in positions]).numpy()


def stop_ids(model: Any, folder: str) -> list[int]:
    """The ids that the artifact's own files give the package to stop on, as transformers reads them."""
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:  # no generation_config.json
        found = model.config.eos_token_id
    return [found] if isinstance(found, int) else list(found or ())


def generate(model: Any, prompts: list[list[int]], stops: list[int], limit: int) -> list[list[int]]:
    """Continue the prompts greedily, in one batch filled up on the left; an answer ends with the id that ended it."""
    from transformers import GenerationConfig

    width = max(map(len, prompts))
    filler = stops[0] if stops else 0
    ids = torch.tensor([[filler] * (width - len(prompt)) + prompt for prompt in prompts])
    seen = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    # Only the stops are taken from the artifact: a penalty or temperature of its maker would be no greedy decoding.
    settings = GenerationConfig(
        max_new_tokens=limit, do_sample=False, eos_token_id=stops or None, pad_token_id=filler, bos_token_id=None
    )
    whole = model.generate(input_ids=ids, attention_mask=seen, generation_config=settings)
    return [upto_stop(answer, stops) for answer in whole[:, width:].tolist()]


def upto_stop(answer: list[int], stops: list[int]) -> list[int]:
    ends = [index for index, token in enumerate(answer) if token in stops]
    return answer[: ends[0] + 1] if ends else answer


def tokenize(folder: str, texts: list[str]) -> dict[str, Any]:
    """Ids of the texts by the package's own transformers, or why it cannot read the tokenizer."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return {"tokens": [tokenizer.encode(text, add_special_tokens=False) for text in texts]}
    except Exception as error:  # Whatever it is, it is the answer.
        return {"tokens": None, "tokenizer_error": f"{type(error).__name__}: {error}"}


def main() -> None:
    place = Path(sys.argv[1])
    request = json.loads((place / "request.json").read_text(encoding="utf-8"))
    folder = request["folder"]
    torch.set_num_threads(request["threads"])
    with torch.inference_mode():
        model = LOADERS[request["runtime"]](folder).eval()
        positions = [(row, position) for row, position in request["positions"]]
        np.save(place / "logits.npy", logits_at(model, request["rows"], positions), allow_pickle=False)
        stops = stop_ids(model, folder)
        answers = generate(model, request["prompts"], stops, request["max_tokens"])
    result = {"stops": stops, "answers": answers, **tokenize(folder, request["texts"])}
    (place / "answers.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
