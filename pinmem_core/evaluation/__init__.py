"""Evaluation: exact scores with their protocol, confidence intervals and reports."""

from pinmem_core.evaluation.bootstrap import bootstrap_interval, paired_interval
from pinmem_core.evaluation.evaluate import confusion_matrix, evaluate_domain
from pinmem_core.evaluation.metrics import (
    Calibration,
    ConfusionMatrix,
    Scores,
    class_sets,
    mean_over_domains,
)
from pinmem_core.evaluation.report import evaluate_run
from pinmem_core.evaluation.results import DomainResult, ImageResult, Report
from pinmem_core.evaluation.scored_classes import ScoredClasses
from pinmem_core.evaluation.targets import Target, load_target, load_validation, shared_images
from pinmem_core.evaluation.trained_on import TrainedOn

__all__ = [
    "Calibration",
    "ConfusionMatrix",
    "DomainResult",
    "ImageResult",
    "Report",
    "ScoredClasses",
    "Scores",
    "Target",
    "TrainedOn",
    "bootstrap_interval",
    "class_sets",
    "confusion_matrix",
    "evaluate_domain",
    "evaluate_run",
    "load_target",
    "load_validation",
    "mean_over_domains",
    "paired_interval",
    "shared_images",
]
