"""AutoAWQ as a command, for its own environment: `python autoawq_worker.py MODEL OUT ROWS`.

4 bits, groups of 64, everything else as the package has it, but for one repair: on a CPU its search for scales keeps a
copy of the weights that is none, so every candidate is laid over the one before and garbage comes out without a word.
Prints the seconds of quantizing alone, without imports, loading and saving.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from awq import AutoAWQForCausalLM
from awq.quantize.quantizer import AwqQuantizer
from transformers import AutoTokenizer

GROUP = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("rows", type=Path, help="JSON: a list of rows of token ids")
    options = parser.parse_args()
    rows = json.loads(options.rows.read_text())
    mend()
    # Its own choice is float16, which takes more than twice as long on a CPU and rounds more.
    model = AutoAWQForCausalLM.from_pretrained(str(options.model), torch_dtype=torch.float32, device_map="cpu")
    tokenizer = AutoTokenizer.from_pretrained(str(options.model))
    begin = time.perf_counter()
    model.quantize(
        tokenizer,
        quant_config={"zero_point": True, "q_group_size": GROUP, "w_bit": 4, "version": "GEMM"},
        calib_data=rows,
        max_calib_samples=len(rows),
        # Rows are joined and cut again at this length.
        max_calib_seq_len=max(map(len, rows)),
    )
    print(json.dumps({"quantizing": time.perf_counter() - begin}), flush=True)
    model.save_quantized(str(options.out))
    tokenizer.save_pretrained(str(options.out))


def mend() -> None:
    """Make `state_dict()` a copy where the search restores weights from it: `.cpu()` on a CPU copies nothing."""
    search = AwqQuantizer._compute_best_scale

    def searched(self: Any, x: Any, w_mean: Any, x_mean: Any, module: Any, *others: Any, **named: Any) -> Any:
        stored = module.state_dict
        module.state_dict = lambda: {name: weight.clone() for name, weight in stored().items()}
        try:
            return search(self, x, w_mean, x_mean, module, *others, **named)
        finally:
            del module.state_dict

    AwqQuantizer._compute_best_scale = searched


if __name__ == "__main__":
    main()
