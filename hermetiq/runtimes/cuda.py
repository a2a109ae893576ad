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

    home = toolkit()
    built_for, compiles_for = (torch.version.cuda or "").partition(".")[0], _release(home)
    needs = {
        "no GPU that torch sees": torch.cuda.is_available(),
        "no CUDA compiler (nvcc)": home is not None,
        "no CUDA libraries beside nvcc (cusparse.h)": home is None or _has_libraries(home),
        f"nvcc is of CUDA {compiles_for}, torch of CUDA {built_for}": not (built_for and compiles_for)
        or built_for == compiles_for,
        "no C++ compiler (c++)": shutil.which(os.environ.get("CXX", "c++")) is not None,
        "no header files of Python (Python.h)": Path(sysconfig.get_path("include"), "Python.h").is_file(),
    }
    return ", ".join(reason for reason, met in needs.items() if not met)


def toolkit() -> Path | None:
    """The folder of the CUDA toolkit: the one that is named, else that of the compiler on PATH, else the usual one.

    A link or a script on PATH may stand beside no libraries, so a folder that has them comes first.
    """
    named, found = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"), shutil.which("nvcc")
    folders = [Path(named)] if named else [Path(found).resolve().parents[1], TOOLKIT] if found else [TOOLKIT]
    return max((home for home in folders if (home / "bin" / "nvcc").is_file()), key=_has_libraries, default=None)


def _has_libraries(home: Path) -> bool:
    return (home / "include" / "cusparse.h").is_file()


def _release(home: Path | None) -> str:
    """The first number of the compiler's version, which torch wants to be its own; empty where it does not say."""
    if home is None:
        return ""
    told = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+)\.", told)
    return found[1] if found else ""
