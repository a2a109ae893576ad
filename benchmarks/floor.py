"""The floor of an export: `python -m benchmarks.floor SOURCE RECIPE THREADS` prints the seconds of the bare search.

Each thread quantizes one slice of rows, already in float32 and in its cache, over and over: no reading, no conversion,
no writing. The speed found for each type is applied to the weights that the plan gives it. Nothing that uses ggml's
search can be faster.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from gguf import GGMLQuantizationType as GgmlType

from hermetiq.pipeline import prepare
from hermetiq.quantize import ggml
from hermetiq.quantize.spec import Spec

SECONDS = 8.0


def search_seconds(source: str, recipe: str, threads: int) -> float:
    """Seconds that ggml's C function takes for every weight of the checkpoint, in the types of the recipe."""
    (plan,) = prepare(source, [Spec("gguf", recipe)]).gguf.values()
    weights = Counter[GgmlType]()
    for tensor in plan.tensors:
        weights[tensor.choice.type] += tensor.weights
    return sum(count / rate(type, plan.model.hidden, threads) for type, count in weights.items())


def rate(type: GgmlType, columns: int, threads: int) -> float:
    """Weights a second over all threads."""
    library = ggml.load()
    generator = np.random.default_rng(0)
    slices = [generator.standard_normal((256, columns), np.float32) * np.float32(0.02) for _ in range(threads)]
    begin = time.perf_counter()
    end = begin + SECONDS

    def work(rows: ggml.Float32) -> int:
        done = 0
        while time.perf_counter() < end:
            library.blocks(rows, [type])
            done += rows.size
        return done

    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, slices))
    return done / (time.perf_counter() - begin)


if __name__ == "__main__":
    source, recipe, threads = sys.argv[1:]
    print(search_seconds(source, recipe, int(threads)))
