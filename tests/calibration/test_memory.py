"""Calibration takes the memory of one block and the hidden states, however deep the model is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.memory_worker import BLOCK_BYTES

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")


CASES = ("8:shared", "16:shared", "32:shared", "8:sequential", "32:sequential", "8:hoard", "32:hoard")


def test_peak_memory_does_not_grow_with_depth() -> None:
    command = [sys.executable, "-m", "tests.fixtures.memory_worker", *CASES]
    # Tensors this small would come from glibc's heap, whose fragmentation grows a little with everything that is done.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True)
    peaks = dict(zip(CASES, (int(line) for line in done.stdout.split()), strict=True))
    assert max(peaks["16:shared"], peaks["32:shared"]) - peaks["8:shared"] < BLOCK_BYTES
    assert peaks["32:sequential"] - peaks["8:sequential"] < BLOCK_BYTES
    # Were the measurement blind, the rest would prove nothing: a visitor that keeps its blocks shows.
    assert peaks["32:hoard"] - peaks["8:hoard"] > 20 * BLOCK_BYTES
