"""What works on this machine, what can be added, and what cannot, each with its reason and the line that changes it.

Much trouble with quantized models is an installation: a wheel for another Python, a package that ended, a missing
compiler. So nothing is left to a stack trace: every part is looked at before it is needed (U09, U10, U55).
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from hermetiq.runtimes import cuda
from hermetiq.runtimes.environments import (
    RUNTIMES,
    Runtime,
    interpreter,
    is_ready,
    lacking,
    python_range,
    python_remedy,
)

State = Literal["ready", "not installed", "missing"]
"""`missing`: it is not here, and hermetiq cannot put it here."""


@dataclass(frozen=True)
class Line:
    """One part of the installation."""

    name: str
    state: State
    what: str
    """Its version, or why it is not ready."""
    formats: tuple[str, ...] = ()
    """Formats whose artifacts it reads."""
    remedy: str = ""
    """The command or the deed that makes it ready; empty where it is, or where nothing does."""

    def to_json(self) -> dict[str, Any]:
        """Stable, for scripts."""
        return asdict(self)


def examine() -> tuple[Line, ...]:
    """Python, torch, GPU, llama.cpp, and every package that artifacts can be proven in. Nothing is installed."""
    return (_python(), _torch(), _gpu(), _llama_cpp(), *(_runtime(item) for item in RUNTIMES.values()))


def _python() -> Line:
    return Line("python", "ready", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _torch() -> Line:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Line("torch", "ready", f"{torch.__version__.partition('+')[0]}, {build}")


def _gpu() -> Line:
    import torch

    if not torch.cuda.is_available():
        return Line("gpu", "missing", "torch sees none; everything runs on the CPU, slower")
    device = torch.cuda.get_device_properties(0)
    return Line("gpu", "ready", f"{device.name}, {device.total_memory / 1e9:.0f} GB")


def _llama_cpp() -> Line:
    try:
        return Line("llama.cpp", "ready", f"xllamacpp {version('xllamacpp')}", ("gguf",))
    except PackageNotFoundError:
        return Line("llama.cpp", "missing", "not installed", ("gguf",), "pip install xllamacpp")


def _runtime(runtime: Runtime) -> Line:
    environment = runtime.environment
    if reason := lacking(runtime.name):
        return Line(runtime.name, "missing", reason, runtime.formats, cuda.REMEDY)
    if interpreter(environment) is None:
        what = f"{environment.package} wants {python_range(environment)}"
        return Line(runtime.name, "missing", what, runtime.formats, python_remedy(environment))
    if is_ready(environment):
        return Line(runtime.name, "ready", f"in the environment of {environment.package}", runtime.formats)
    what = f"an environment with {environment.package} can be made"
    return Line(runtime.name, "not installed", what, runtime.formats, f"hermetiq doctor --install {runtime.name}")
