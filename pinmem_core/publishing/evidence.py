"""How good a checkpoint is, as far as what lies beside it tells."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinmem_core.documents import read_json_object
from pinmem_core.errors import DataError
from pinmem_core.evaluation.report import DATA
from pinmem_core.inference import PROTOCOLS
from pinmem_core.model.checkpoint import WEIGHTS
from pinmem_core.model.figures import Figures
from pinmem_core.model.found import run_folder


@dataclass(frozen=True)
class Evidence:
    """Scores and where they are from.

    Attributes:
        figures: For the card.
        report: The `report.json` that they are from; None for a run's own scores.
    """

    figures: Figures
    report: Path | None = None


def evidence_of(checkpoint: Path) -> Evidence | None:
    """Return the newest report on exactly these weights, else the scores of the run, else None."""
    with (checkpoint / WEIGHTS).open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    run = run_folder(checkpoint)
    reports = [*run.glob(f"eval/*/{DATA}"), *checkpoint.glob(DATA)]
    for path in sorted(reports, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        data = _read(path)
        if data.get("checkpoint", {}).get("weights_sha256") == digest:
            return Evidence(Figures.of_report(data), path)
    scores = _read(run / "scores.json")
    if not scores:
        return None
    name = scores["protocol"]
    return Evidence(Figures.of_run(scores, f"{name}: {PROTOCOLS[name].describe()}"))


def _read(path: Path) -> Mapping[str, Any]:
    """Return what a JSON file holds; nothing where there is none, or a damaged one."""
    try:
        return read_json_object(path)
    except DataError:
        return {}
