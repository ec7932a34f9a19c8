"""What made the figures of a report: without it, nobody can repeat or compare them."""

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
from pinmem_core.model.checkpoint import WEIGHTS
from pinmem_core.model.found import run_folder
from pinmem_core.version import __version__


@dataclass(frozen=True)
class Origin:
    """Where figures come from.

    Attributes:
        checkpoint: The folder.
        weights_sha256: Of the checkpoint's weights, the memory included.
        name: Of the protocol.
        protocol: How images were shown to the network.
        precision: Of the network's convolutions.
        device: Kind and name of what computed.
        date: ISO 8601, UTC.
        versions: Of pinmem, Python, torch and numpy.
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
        """Return the origin of figures that are made now.

        Args:
            checkpoint: Where the predictor's weights are from.
            name: Of its protocol.
            predictor: What predicts.
            precision: Of its convolutions.
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
        """The name of the run, or of a checkpoint that is in none."""
        return run_folder(self.checkpoint).resolve().name

    @property
    def words(self) -> str:
        """The protocol's name and what it does."""
        return f"{self.name}: {self.protocol.describe()}"

    def as_json(self) -> dict[str, Any]:
        """Return what a report says of its origin."""
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
