"""GGUF files: which tensors, in which type, with what metadata, and the streaming writer.

In three steps: a `GgufHeader` from the checkpoint and its contract, a `GgufPlan` for each recipe, one `write`.
"""

from .layout import GgufPlan, PlannedTensor, plan
from .metadata import GgufHeader
from .writer import write

__all__ = ["GgufHeader", "GgufPlan", "PlannedTensor", "plan", "write"]
