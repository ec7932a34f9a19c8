"""Evaluation: exact scores with their protocol, confidence intervals and reports."""

from pinmem_core.evaluation.evaluate import confusion_matrix
from pinmem_core.evaluation.metrics import ConfusionMatrix, Scores
from pinmem_core.evaluation.report import evaluate_run
from pinmem_core.evaluation.results import Report
from pinmem_core.evaluation.targets import Target, load_target, load_validation, shared_images
from pinmem_core.evaluation.trained_on import TrainedOn

__all__ = [
    "ConfusionMatrix",
    "Report",
    "Scores",
    "Target",
    "TrainedOn",
    "confusion_matrix",
    "evaluate_run",
    "load_target",
    "load_validation",
    "shared_images",
]
