"""A tiny checkpoint as the walk takes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open

from hermetiq.calibration.walk import Load


@contextmanager
def opened(folder: Path) -> Iterator[tuple[dict[str, Any], Load]]:
    """The configuration and the tensors of a checkpoint of one shard."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        yield json.loads((folder / "config.json").read_text()), file.get_tensor
