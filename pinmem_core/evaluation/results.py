"""Results of an evaluation, with the provenance of the model, and their JSON format."""

import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property, reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pinmem_core.checkpoints.checkpoint import weights_sha256
from pinmem_core.checkpoints.config_file import read_config
from pinmem_core.checkpoints.hub import run_folder
from pinmem_core.checkpoints.model_card import progress_of, seen_in_words
from pinmem_core.documents import json_text
from pinmem_core.evaluation.metrics import (
    Calibration,
    ConfusionMatrix,
    Scores,
    class_sets,
    mean_over_domains,
    none_if_nan,
)
from pinmem_core.inference import Predictor, Protocol
from pinmem_core.label_space import CITYSCAPES, LabelSpace
from pinmem_core.version import __version__

SCHEMA_VERSION = 2
"""Version of `report.json`."""
LEVEL = 0.95
"""Confidence level of the bootstrap intervals."""


@dataclass(frozen=True, eq=False)
class ImageResult:
    """Pixel counts of one image, as in `ConfusionMatrix`.

    Attributes:
        id: Id of the sample.
        counts: Confusion matrix, (K, K) int64.
        missed: Pixels predicted as no class, by true class, (K,) int64.
    """

    id: str
    counts: NDArray[np.int64]
    missed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(CITYSCAPES), np.int64))

    @property
    def matrix(self) -> ConfusionMatrix:
        """Confusion matrix of the image."""
        return ConfusionMatrix(self.counts, self.missed)


@dataclass(frozen=True, eq=False)
class DomainResult:
    """Results of one target.

    Attributes:
        name: Name of the target.
        split: Evaluated split, or "all".
        images: Results of the images, in the order of the target's samples.
        calibration: Calibration counts of all images.
        seen: Whether the network was trained on the domain; None if unknown.
        trained_images: Number of images that the network was trained on; None if unknown.
        interval: Interval (low, high) of the mIoU over the classes that occur, in 0..1.
        dataset_digest: Digest of the prepared dataset; equal digests mean equal data.
        space: Label space of the scores.
        memory: Use of the memory, as `MemoryUse.as_json`; None if it was not measured.
    """

    name: str
    split: str
    images: tuple[ImageResult, ...]
    calibration: Calibration
    seen: bool | None = None
    trained_images: int | None = None
    interval: tuple[float, float] = (0, 1)
    dataset_digest: str = ""
    space: LabelSpace = CITYSCAPES
    memory: Mapping[str, Any] | None = None

    @cached_property
    def matrix(self) -> ConfusionMatrix:
        """Confusion matrix of all images."""
        empty = ConfusionMatrix.empty(len(self.space))
        return reduce(add, (image.matrix for image in self.images), empty)

    @cached_property
    def scores(self) -> Scores:
        """Scores of all images together."""
        return Scores.of(self.matrix, len(self.images), self.space)

    def as_json(self) -> dict[str, Any]:
        """Return the target's entry in `report.json`."""
        return {
            "seen": self.seen,
            "images_trained_on": self.trained_images,
            "split": self.split,
            "dataset_digest": self.dataset_digest,
            "classes": list(self.space.names),
            **asdict(self.scores),
            "interval": {"level": LEVEL, "low": self.interval[0], "high": self.interval[1]},
            "calibration": _calibration_json(self.calibration),
            **({"memory": dict(self.memory)} if self.memory else {}),
            "counts": self.matrix.counts.tolist(),
            "missed": self.matrix.missed.tolist(),
            "per_image": [_image_json(image) for image in self.images],
        }


@dataclass(frozen=True)
class Origin:
    """Provenance of metrics.

    Attributes:
        checkpoint: Folder of the checkpoint.
        weights_sha256: SHA-256 of the checkpoint's weights, including the memory.
        name: Name of the protocol.
        protocol: Inference protocol.
        precision: Floating-point type of the network's convolutions.
        device: Type and name of the device.
        date: Date and time, ISO 8601 in UTC.
        versions: Versions of pinmem, Python, torch and numpy.
        unfinished: Iterations done, and of all, if the training is not finished.
    """

    checkpoint: Path
    weights_sha256: str
    name: str
    protocol: Protocol
    precision: str
    device: str
    date: str
    versions: Mapping[str, str]
    unfinished: tuple[int, int] | None = None

    @classmethod
    def of(cls, checkpoint: Path, name: str, predictor: Predictor, precision: str) -> "Origin":
        """Return the origin of metrics computed now.

        Args:
            checkpoint: Folder of the predictor's checkpoint.
            name: Name of the predictor's protocol.
            predictor: Predictor that computes the metrics.
            precision: Floating-point type of its convolutions.
        """
        kind = predictor.device.type
        cpu = platform.processor() or platform.machine()
        device = torch.cuda.get_device_name(predictor.device) if kind == "cuda" else cpu
        return cls(
            checkpoint=checkpoint,
            weights_sha256=weights_sha256(checkpoint),
            name=name,
            protocol=predictor.protocol,
            precision=precision,
            device=f"{kind} ({device})",
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={
                "pinmem": __version__,
                "Python": platform.python_version(),
                "torch": str(torch.__version__),
                "numpy": np.__version__,
            },
            unfinished=progress_of(read_config(checkpoint)),
        )

    @property
    def model(self) -> str:
        """Name of the run, or of a checkpoint outside of runs."""
        return run_folder(self.checkpoint).resolve().name

    @property
    def protocol_text(self) -> str:
        """Name and description of the protocol."""
        return f"{self.name}: {self.protocol.describe()}"

    def as_json(self) -> dict[str, Any]:
        """Return the origin as fields of `report.json`."""
        return {
            "model": self.model,
            "checkpoint": {"path": str(self.checkpoint), "weights_sha256": self.weights_sha256},
            "protocol": {
                "name": self.name,
                "description": self.protocol.describe(),
                "fields": asdict(self.protocol),
            },
            "precision": self.precision,
            "device": self.device,
            "date": self.date,
            "versions": dict(self.versions),
            "unfinished": self.unfinished
            and {"iteration": self.unfinished[0], "iterations": self.unfinished[1]},
        }


@dataclass(frozen=True, eq=False)
class Report:
    """Report of one checkpoint.

    Attributes:
        origin: Provenance of the scores.
        domains: Results of the targets, by name.
    """

    origin: Origin
    domains: dict[str, DomainResult]

    @property
    def scores(self) -> dict[str, Scores]:
        """Scores by target."""
        return {name: domain.scores for name, domain in self.domains.items()}

    @property
    def splits(self) -> dict[str, str]:
        """Evaluated split by target."""
        return {name: domain.split for name, domain in self.domains.items()}

    @property
    def protocol(self) -> str:
        """Name and description of the protocol."""
        return self.origin.protocol_text

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoint."""
        return self.origin.checkpoint

    @property
    def seen(self) -> dict[str, bool | None]:
        """Whether the network was trained on each target; None if unknown."""
        return {name: domain.seen for name, domain in self.domains.items()}

    @property
    def parts(self) -> "dict[LabelSpace, Report]":
        """The report of the targets that are scored in the same classes, by label space.

        Spaces of the same name and classes are one, whatever their colours and maps are.
        """
        spaces: dict[tuple[str, ...], LabelSpace] = {}
        parts: dict[LabelSpace, dict[str, DomainResult]] = {}
        for name, domain in self.domains.items():
            space = spaces.setdefault((domain.space.name, *domain.space.names), domain.space)
            parts.setdefault(space, {})[name] = domain
        return {space: Report(self.origin, domains) for space, domains in parts.items()}

    @property
    def averages(self) -> dict[str, dict[str, float | None]]:
        """Mean mIoU by class set, over the unseen and over the seen targets.

        A group without targets is left out; targets with unknown status belong to no group. A mean
        is None if a target has no mIoU. If the targets are scored in several label spaces, there is
        a mean for each, e.g. "unseen (idd-level1)".
        """
        averages = {}
        parts = self.parts
        for space, part in parts.items():
            for seen in (False, True):
                scores = [of for name, of in part.scores.items() if part.seen[name] is seen]
                if scores:
                    group = seen_in_words(seen) + f" ({space.name})" * (len(parts) > 1)
                    averages[group] = {n: mean_over_domains(scores, n) for n in class_sets(space)}
        return averages

    def as_json(self) -> dict[str, Any]:
        """Return the content of `report.json`; shares are in 0..1, None for missing values."""
        return {
            "schema_version": SCHEMA_VERSION,
            **self.origin.as_json(),
            "classes": list(dict.fromkeys(name for space in self.parts for name in space.names)),
            "average_miou_by_set": self.averages,
            "targets": {name: domain.as_json() for name, domain in self.domains.items()},
        }

    def as_text(self) -> str:
        """Return the text of `report.json`."""
        return report_text(self.as_json())


def report_text(content: Mapping[str, Any]) -> str:
    """Return the text of a `report.json`, in which each list of numbers takes one line."""
    text = json_text(content, indent=1)
    return re.sub(r"\[\n[-+.\deE,\s]+]", lambda match: " ".join(match[0].split()), text) + "\n"


def image_counts(entry: dict[str, Any], size: int = len(CITYSCAPES)) -> ImageResult:
    """Return the counts of one entry of `per_image` in a `report.json`, for `size` classes."""
    table = np.zeros((size, size + 1), np.int64)
    table.ravel()[entry["cells"]] = entry["pixels"]
    return ImageResult(entry["id"], table[:, :-1], table[:, -1])


def _image_json(image: ImageResult) -> dict[str, Any]:
    """Return the nonzero cells of an image's counts, (K, K + 1); the last column is `missed`."""
    table = np.column_stack([image.counts, image.missed]).ravel()
    cells = np.flatnonzero(table)
    return {
        "id": image.id,
        "miou": none_if_nan(image.matrix.miou()),
        "cells": cells.tolist(),
        "pixels": table[cells].tolist(),
    }


def _calibration_json(calibration: Calibration) -> dict[str, Any]:
    return {
        "ece": none_if_nan(calibration.ece),
        "auroc": none_if_nan(calibration.auroc),
        "counts": calibration.counts.tolist(),
        "confidence_sums": calibration.confidence_sums.tolist(),
        "hits": calibration.hits.tolist(),
    }
