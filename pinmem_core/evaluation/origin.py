"""Provenance of the metrics in a report, needed to reproduce and compare them."""

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pinmem_core.inference import Predictor, Protocol
from pinmem_core.models.checkpoint import WEIGHTS
from pinmem_core.models.found import run_folder
from pinmem_core.version import __version__


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
    """

    checkpoint: Path
    weights_sha256: str
    name: str
    protocol: Protocol
    precision: str
    device: str
    date: str
    versions: Mapping[str, str]

    @classmethod
    def of(cls, checkpoint: Path, name: str, predictor: Predictor, precision: str) -> "Origin":
        """Return the origin of metrics computed now.

        Args:
            checkpoint: Folder of the predictor's checkpoint.
            name: Name of the predictor's protocol.
            predictor: Predictor that computes the metrics.
            precision: Floating-point type of its convolutions.
        """
        with (checkpoint / WEIGHTS).open("rb") as weights:
            digest = hashlib.file_digest(weights, "sha256").hexdigest()
        return cls(
            checkpoint=checkpoint,
            weights_sha256=digest,
            name=name,
            protocol=predictor.protocol,
            precision=precision,
            device=_described(predictor.device),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=_versions(),
        )

    @property
    def model(self) -> str:
        """Name of the run, or of a checkpoint outside of runs."""
        return run_folder(self.checkpoint).resolve().name

    @property
    def words(self) -> str:
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
        }


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({platform.processor() or platform.machine()})"


def _versions() -> dict[str, str]:
    return {
        "pinmem": __version__,
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
