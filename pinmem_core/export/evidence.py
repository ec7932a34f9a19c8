"""Scores of a checkpoint, read from its report or its run."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinmem_core.checkpoints.checkpoint import WEIGHTS
from pinmem_core.checkpoints.hub import run_folder
from pinmem_core.checkpoints.model_card import Figures
from pinmem_core.documents import read_json_object
from pinmem_core.errors import DataError
from pinmem_core.evaluation.compare import LARGEST_REPORT
from pinmem_core.evaluation.report import DATA
from pinmem_core.inference import PROTOCOLS


@dataclass(frozen=True)
class Evidence:
    """Scores with their source.

    Attributes:
        figures: Metrics for the model card.
        report: Path of the `report.json` with the scores; None for the scores of the run.
    """

    figures: Figures
    report: Path | None = None


def evidence_of(checkpoint: Path) -> Evidence | None:
    """Return the newest report on these weights, else the scores of the run, else None."""
    with (checkpoint / WEIGHTS).open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    run = run_folder(checkpoint)
    reports = [*run.glob(f"eval/*/{DATA}"), *checkpoint.glob(DATA)]
    for path in sorted(reports, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if figures := _figures(path, _of_report, digest):
            return Evidence(figures, path)
    figures = _figures(run / "scores.json", _of_run)
    return Evidence(figures) if figures else None


def _figures(path: Path, build: Callable[..., Figures | None], *facts: str) -> Figures | None:
    """Return the figures in a JSON file; None where there is none, or a damaged one."""
    try:
        return build(read_json_object(path, LARGEST_REPORT), *facts)
    except (DataError, KeyError, TypeError, AttributeError, ValueError):
        return None


def _of_report(data: Mapping[str, Any], digest: str) -> Figures | None:
    """Return the figures of a report, None if it is on other weights."""
    return Figures.of_report(data) if data["checkpoint"]["weights_sha256"] == digest else None


def _of_run(data: Mapping[str, Any]) -> Figures:
    name = data["protocol"]
    return Figures.of_run(data, f"{name}: {PROTOCOLS[name].describe()}")
