"""llama.cpp's quantizer as a command: `python -m benchmarks.llama_quantize SOURCE TARGET FILE_TYPE THREADS`."""

from __future__ import annotations

import ctypes
import sys

import llama_cpp


def main(source: str, target: str, file_type: str, threads: str) -> int:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = int(file_type), int(threads)
    return int(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
