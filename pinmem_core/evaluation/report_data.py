"""Content of a report, and its JSON format `report.json`."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pinmem_core.documents import json_text
from pinmem_core.evaluation.calibration import Calibration
from pinmem_core.evaluation.class_sets import CLASS_SET_NAMES
from pinmem_core.evaluation.origin import Origin
from pinmem_core.evaluation.results import DomainResult, ImageResult
from pinmem_core.evaluation.scores import Scores, mean_over_domains
from pinmem_core.labels import CLASS_NAMES
from pinmem_core.models.figures import seen_in_words

SCHEMA_VERSION = 2
LEVEL = 0.95
"""Confidence level of the bootstrap intervals."""


@dataclass(frozen=True, eq=False)
class DomainReport:
    """Report of one target.

    Attributes:
        result: Counts and scores.
        dataset_digest: Digest of the prepared dataset; equal digests mean equal data.
        interval: Interval (low, high) of the mIoU over the classes that occur, in 0..1.
    """

    result: DomainResult
    dataset_digest: str
    interval: tuple[float, float]

    def as_json(self) -> dict[str, Any]:
        """Return the target's entry in `report.json`."""
        return {
            "seen": self.result.seen,
            "images_trained_on": self.result.trained_images,
            "split": self.result.split,
            "dataset_digest": self.dataset_digest,
            **asdict(self.result.scores),
            "interval": {"level": LEVEL, "low": self.interval[0], "high": self.interval[1]},
            "calibration": _calibration_json(self.result.calibration),
            "counts": self.result.matrix.counts.tolist(),
            "missed": self.result.matrix.missed.tolist(),
            "per_image": [_image_json(image) for image in self.result.images],
        }


@dataclass(frozen=True, eq=False)
class Report:
    """Report of one checkpoint.

    Attributes:
        origin: Provenance of the scores.
        domains: Reports of the targets, by name.
    """

    origin: Origin
    domains: dict[str, DomainReport]

    @property
    def scores(self) -> dict[str, Scores]:
        """Scores by target."""
        return {name: domain.result.scores for name, domain in self.domains.items()}

    @property
    def splits(self) -> dict[str, str]:
        """Evaluated split by target."""
        return {name: domain.result.split for name, domain in self.domains.items()}

    @property
    def protocol(self) -> str:
        """Name and description of the protocol."""
        return self.origin.words

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoint."""
        return self.origin.checkpoint

    @property
    def seen(self) -> dict[str, bool | None]:
        """Whether the network was trained on each target; None if unknown."""
        return {name: domain.result.seen for name, domain in self.domains.items()}

    @property
    def averages(self) -> dict[str, dict[str, float | None]]:
        """Mean mIoU by class set, over the unseen and over the seen targets.

        A group without targets is left out; targets with unknown status belong to no group. A mean
        is None if a target has no mIoU.
        """
        averages = {}
        for seen in (False, True):
            scores = [of for name, of in self.scores.items() if self.seen[name] is seen]
            if scores:
                means = {name: mean_over_domains(scores, name) for name in CLASS_SET_NAMES}
                averages[seen_in_words(seen)] = means
        return averages

    def as_json(self) -> dict[str, Any]:
        """Return the content of `report.json`; shares are in 0..1, None for missing values."""
        return {
            "schema_version": SCHEMA_VERSION,
            **self.origin.as_json(),
            "classes": list(CLASS_NAMES),
            "average_miou_by_set": self.averages,
            "targets": {name: domain.as_json() for name, domain in self.domains.items()},
        }

    def as_text(self) -> str:
        """Return `as_json` as a text in which each list of numbers takes one line."""
        text = json_text(self.as_json(), indent=1)
        return re.sub(r"\[\n[-+.\deE,\s]+]", lambda found: " ".join(found[0].split()), text) + "\n"


def image_counts(entry: dict[str, Any]) -> ImageResult:
    """Return the counts of one entry of `per_image` in a `report.json`."""
    table = np.zeros((len(CLASS_NAMES), len(CLASS_NAMES) + 1), np.int64)
    table.ravel()[entry["cells"]] = entry["pixels"]
    return ImageResult(entry["id"], table[:, :-1], table[:, -1])


def _image_json(image: ImageResult) -> dict[str, Any]:
    """Return the nonzero cells of an image's (19, 20) count table; the last column is `missed`."""
    table = np.column_stack([image.counts, image.missed]).ravel()
    cells = np.flatnonzero(table)
    return {
        "id": image.id,
        "miou": known(image.matrix.miou()),
        "cells": cells.tolist(),
        "pixels": table[cells].tolist(),
    }


def _calibration_json(calibration: Calibration) -> dict[str, Any]:
    return {
        "ece": known(calibration.ece),
        "auroc": known(calibration.auroc),
        "counts": calibration.counts.tolist(),
        "confidence_sums": calibration.confidence_sums.tolist(),
        "hits": calibration.hits.tolist(),
    }


def known(value: float) -> float | None:
    """Return `value`, or None for NaN."""
    return None if np.isnan(value) else float(value)
