"""Benchmarks of the source and of every artifact by EleutherAI's lm-evaluation-harness, side by side."""

from .results import Evaluation as Evaluation
from .run import evaluate as evaluate
