"""Scores that can be cited: exact counts, and which protocol made them."""

from pinmem_core.evaluation.evaluate import Target, evaluate, load_target, load_validation
from pinmem_core.evaluation.report import Report, evaluate_run
from pinmem_core.evaluation.scores import ConfusionMatrix, Scores

__all__ = [
    "ConfusionMatrix",
    "Report",
    "Scores",
    "Target",
    "evaluate",
    "evaluate_run",
    "load_target",
    "load_validation",
]
