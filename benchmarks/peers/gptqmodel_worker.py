"""GPTQModel as a command, for its own environment: `python gptqmodel_worker.py MODEL OUT ROWS [--desc-act]`.

4 bits, groups of 64, symmetric, everything else as the package has it. Without `--desc-act` that includes its
activation order inside groups (`act_group_aware`), which costs nothing at inference. Prints the seconds of quantizing
alone, without imports, loading and saving.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

# Without it, two cores give the package one worker, and it waits for ever.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from gptqmodel import GPTQModel, QuantizeConfig

GROUP = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("rows", type=Path, help="JSON: a list of rows of token ids")
    parser.add_argument("--desc-act", action="store_true")
    options = parser.parse_args()
    rows = [torch.tensor([row]) for row in json.loads(options.rows.read_text())]
    calibration = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
    config = QuantizeConfig(bits=4, group_size=GROUP, sym=True, desc_act=options.desc_act, device="cpu")
    model = GPTQModel.load(str(options.model), config)
    begin = time.perf_counter()
    model.quantize(calibration, batch_size=1)
    print(json.dumps({"quantizing": time.perf_counter() - begin}), flush=True)
    model.save(str(options.out))


if __name__ == "__main__":
    main()
