"""What it takes to compile and to run a package's own CUDA code here, looked at before anything is installed for it.

A missing compiler is otherwise told by a stack trace, after minutes (U09, U55).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

REMEDY = "use a machine with an NVIDIA GPU, torch built for CUDA, the CUDA toolkit of that version and a C++ compiler"
TOOLKIT = Path("/usr/local/cuda")


def lacking() -> str:
    """What is missing here, in words; empty where nothing is."""
    import torch  # Takes seconds, and the command line has no use for it.

    compiler = nvcc()
    built_for, compiles_for = (torch.version.cuda or "").partition(".")[0], _release(compiler)
    needs = {
        "no GPU that torch sees": torch.cuda.is_available(),
        "no CUDA compiler (nvcc)": compiler is not None,
        f"nvcc is of CUDA {compiles_for}, torch of CUDA {built_for}": not (built_for and compiles_for)
        or built_for == compiles_for,
        "no C++ compiler (c++)": shutil.which(os.environ.get("CXX", "c++")) is not None,
        "no header files of Python (Python.h)": Path(sysconfig.get_path("include"), "Python.h").is_file(),
    }
    return ", ".join(reason for reason, met in needs.items() if not met)


def nvcc() -> Path | None:
    """The CUDA compiler, looked for where torch looks for it."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = Path(named, "bin", "nvcc") if named else Path(shutil.which("nvcc") or TOOLKIT / "bin" / "nvcc")
    return found if found.is_file() else None


def _release(compiler: Path | None) -> str:
    """The first number of the compiler's version, which torch wants to be its own; empty where it does not say."""
    if compiler is None:
        return ""
    told = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+)\.", told)
    return found[1] if found else ""
