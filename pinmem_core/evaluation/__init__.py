"""Evaluation: exact scores with their protocol, confidence intervals and reports."""

from pinmem_core.evaluation.bootstrap import bootstrap_interval, paired_interval
from pinmem_core.evaluation.evaluate import (
    Target,
    evaluate,
    evaluate_domain,
    load_target,
    load_validation,
)
from pinmem_core.evaluation.metrics import (
    CLASS_SET_NAMES,
    Calibration,
    ConfusionMatrix,
    Scores,
    mean_over_domains,
)
from pinmem_core.evaluation.report import evaluate_run
from pinmem_core.evaluation.results import DomainResult, ImageResult, Report, TrainedOn

__all__ = [
    "CLASS_SET_NAMES",
    "Calibration",
    "ConfusionMatrix",
    "DomainResult",
    "ImageResult",
    "Report",
    "Scores",
    "Target",
    "TrainedOn",
    "bootstrap_interval",
    "evaluate",
    "evaluate_domain",
    "evaluate_run",
    "load_target",
    "load_validation",
    "mean_over_domains",
    "paired_interval",
]
