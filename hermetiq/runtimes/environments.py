"""The packages that artifacts are proven in, each in an environment of its own that is made when it is first asked for.

Their requirements exclude each other and ours (transformers 4.39, 4.51 and 5.23; numpy below 2 and above 2.4), and some
have ended. So they are never dependencies: a venv is built from a pinned requirement file and kept in the user's cache
under the file's hash. Where packages come from is decided by pip's own configuration.

A package that compiles CUDA code gets the torch of this very Python, by a path file, and none of its own: only that
build is known to find the GPU and to fit the compiler, and a second one would be gigabytes for nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import IO

from hermetiq.errors import HermetiqError
from hermetiq.machine import cores
from hermetiq.progress import Ticker, silent

from . import cuda

Version = tuple[int, int]

TORCH = "torch==2.13.0"
REQUIREMENTS = Path(__file__).with_name("requirements")
READY = "ready"
"""A file in an environment that is complete; written last."""
LOG_TAIL = 1000
"""Characters of the log that an error shows."""
THIS_PYTHON: Version = (sys.version_info[0], sys.version_info[1])


@dataclass(frozen=True)
class Environment:
    """How a venv is filled: torch, then the requirement file, then one package without what it asks for itself.

    One for the GPU has this Python's torch instead, and its package is imported once, which compiles its CUDA code.
    """

    name: str
    package: str
    oldest: Version
    newest: Version
    """Python versions it can be built with."""
    settings: tuple[tuple[str, str], ...] = ()
    """Environment variables for the build of `package`."""
    gpu: bool = False

    @property
    def requirements(self) -> Path:
        """Everything but torch and `package`, pinned."""
        return REQUIREMENTS / f"{self.name}.txt"

    @property
    def installs(self) -> tuple[tuple[str, ...], ...]:
        """Arguments of `pip install`, in order. torch comes first, so that nothing else decides which build it is."""
        first = () if self.gpu else ((TORCH,),)
        last = ("--no-deps", "--no-build-isolation", self.package)
        return *first, ("--requirement", str(self.requirements)), last

    @property
    def torch(self) -> str:
        """Which torch it has."""
        return f"torch {distribution('torch').version} in {_torch_folder()}" if self.gpu else TORCH


@dataclass(frozen=True)
class Runtime:
    """A package that people load artifacts with."""

    name: str
    formats: tuple[str, ...]
    environment: Environment


AUTO_GPTQ = Environment("auto-gptq", "auto-gptq==0.7.1", (3, 8), (3, 11))
AUTOAWQ = Environment("autoawq", "autoawq==0.2.9", (3, 9), (3, 12))
GPTQMODEL = Environment("gptqmodel", "gptqmodel==7.7.0", (3, 11), (3, 14), (("BUILD_CUDA_EXT", "0"),))
EXLLAMAV2 = Environment("exllamav2", "exllamav2==0.3.2", THIS_PYTHON, THIS_PYTHON, gpu=True)

RUNTIMES: Mapping[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime("auto-gptq", ("gptq",), AUTO_GPTQ),
        Runtime("autoawq", ("awq",), AUTOAWQ),
        Runtime("gptqmodel", ("gptq", "awq"), GPTQMODEL),
        Runtime("transformers", ("gptq", "awq"), GPTQMODEL),
        Runtime("exllamav2", ("exl2", "gptq"), EXLLAMAV2),
    )
}


def runtime(name: str) -> Runtime:
    """The runtime of that name.

    Raises:
        HermetiqError: there is none.
    """
    if name not in RUNTIMES:
        raise HermetiqError(f"no runtime {name!r}", remedy="runtimes: " + ", ".join(RUNTIMES))
    return RUNTIMES[name]


def lacking(name: str) -> str:
    """What this machine lacks for the runtime `name`, in words; empty where nothing.

    Raises:
        HermetiqError: no such runtime.
    """
    return cuda.lacking() if runtime(name).environment.gpu else ""


def environment_of(name: str) -> Environment:
    """Where the runtime `name` lives.

    Raises:
        HermetiqError: no such runtime, or this machine lacks what it needs.
    """
    if reason := lacking(name):
        raise HermetiqError(f"{name} cannot run here: {reason}", remedy=cuda.REMEDY)
    return runtime(name).environment


def ensure(name: str, tick: Ticker = silent) -> Path:
    """The Python that has the runtime `name`; where its environment is not there yet, it is built (minutes).

    Several processes may ask at once: one builds, the others wait. A build that was cut off starts again.

    Raises:
        HermetiqError: no such runtime, this machine lacks what it needs, no Python of a fitting version, or pip or a
            compiler fails; then the error ends with their own words and names the log.
    """
    needed = environment_of(name)
    folder = folder_of(needed)
    python = folder / "bin" / "python"
    with _alone(folder.with_suffix(".lock")):
        if not _is_complete(folder):
            shutil.rmtree(folder, ignore_errors=True)
            with folder.with_suffix(".log").open("w+", encoding="utf-8", errors="replace") as log:
                _build(needed, folder, python, log, tick)
            (folder / READY).touch()
    return python


def is_ready(environment: Environment) -> bool:
    """Whether the environment stands complete in the cache."""
    return interpreter(environment) is not None and _is_complete(folder_of(environment))


def folder_of(environment: Environment) -> Path:
    """Where the environment lies or will lie: a change of its pins, its package or its Python is another folder.

    Raises:
        HermetiqError: no Python of a fitting version is here.
    """
    _, version = _interpreter(environment)
    pins = environment.requirements.read_text(encoding="utf-8")
    state = "\n".join((environment.torch, environment.package, *map("=".join, environment.settings), version, pins))
    return cache() / "runtimes" / f"{environment.name}-{hashlib.sha256(state.encode()).hexdigest()[:12]}"


def variables(environment: Environment, python: Path) -> dict[str, str]:
    """Environment variables for programs that use `environment`, whose Python is `python`.

    Without a use for the GPU it is hidden. With one, the program finds the compiler, ninja and what was compiled.
    """
    if not environment.gpu:
        return {"CUDA_VISIBLE_DEVICES": ""}
    return {
        "CUDA_HOME": str(cuda.toolkit() or ""),
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "TORCH_EXTENSIONS_DIR": str(python.parents[1] / "extensions"),
        "MAX_JOBS": str(cores()),
    }


def cache() -> Path:
    """Hermetiq's cache: `HERMETIQ_CACHE`, else `hermetiq` in the user's cache folder."""
    if own := os.environ.get("HERMETIQ_CACHE"):
        return Path(own).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "hermetiq"


def interpreter(environment: Environment) -> tuple[str, str] | None:
    """Path and version (`3.11`) of the Python to build it with: this one if it fits, else the newest fit on PATH."""
    running = sys.version_info[:2]
    if environment.oldest <= running <= environment.newest:
        return sys.executable, _spelled(running)
    for minor in range(environment.newest[1], environment.oldest[1] - 1, -1):
        version = _spelled((environment.newest[0], minor))
        if found := shutil.which(f"python{version}"):
            return found, version
    return None


def python_range(environment: Environment) -> str:
    """`Python 3.8 to 3.11`."""
    return f"Python {_spelled(environment.oldest)} to {_spelled(environment.newest)}"


def python_remedy(environment: Environment) -> str:
    """What makes it possible to build it where no Python fits."""
    return f"put python{_spelled(environment.newest)} on PATH"


def _spelled(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def _is_complete(folder: Path) -> bool:
    """Also that its Python is still there: an upgrade of the system's takes it away."""
    return (folder / READY).is_file() and (folder / "bin" / "python").exists()


def _interpreter(environment: Environment) -> tuple[str, str]:
    found = interpreter(environment)
    if found is None:
        raise HermetiqError(
            f"{environment.package} cannot be installed here: it wants {python_range(environment)}",
            remedy=python_remedy(environment),
        )
    return found


def _build(environment: Environment, folder: Path, python: Path, log: IO[str], tick: Ticker) -> None:
    """Fill `folder`. It is built in its place, because a venv does not survive being moved."""
    base, _ = _interpreter(environment)
    # -I: nothing of this process' Python (PYTHONPATH, the user's packages) leaks into the environment.
    commands = [[base, "-I", "-m", "venv", str(folder)]]
    pip = [str(python), "-I", "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    commands += [[*pip, *arguments] for arguments in environment.installs]
    share = 1 / (len(commands) + environment.gpu)
    for number, command in enumerate(commands):
        tick(f"installing {environment.package}", number * share)
        _run(command, environment, python, log)
    if environment.gpu:
        tick(f"compiling {environment.package}", len(commands) * share)
        # Only now: pip would take what lies beside this Python's torch for installed.
        _path_file(folder).write_text(_torch_folder(), encoding="utf-8")
        _run([str(python), "-I", "-c", f"import {environment.name}"], environment, python, log)


def _run(command: Sequence[str], environment: Environment, python: Path, log: IO[str]) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, **variables(environment, python), **dict(environment.settings)},
        check=False,
    )
    if done.returncode:
        log.seek(0)
        raise HermetiqError(
            f"{environment.package} could not be installed; the log ends:\n{log.read()[-LOG_TAIL:].strip()}",
            where=log.name,
            remedy="the log has all of it; once the cause is gone, the same command starts over",
        )


def _path_file(folder: Path) -> Path:
    """Python takes the folder that this file names for one more place to import from, after the venv's own."""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}), "torch.pth")


def _torch_folder() -> str:
    """Where this Python has its torch; torch is not imported for it."""
    return str(distribution("torch").locate_file(""))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock at `path`; the system lets go of it when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
