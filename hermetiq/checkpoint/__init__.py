"""Sources of a model: a folder, a `.gguf` file, a Hub id, or a base with an adapter, all read as one `Checkpoint`."""

from .base import Checkpoint, Provenance, TensorInfo
from .open import open_checkpoint

__all__ = ["Checkpoint", "Provenance", "TensorInfo", "open_checkpoint"]
