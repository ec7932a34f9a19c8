"""Scores as a model card shows them, read off a run's `scores.json` or a `report.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class DomainFigures:
    """How a network does on one domain.

    Attributes:
        name: `dataset[:domain]`.
        unseen: Whether it is none that the network was trained on.
        split: Which split was scored; None where that is not told.
        images: How many were scored.
        miou: In 0..1, over the classes that occur.
        iou: In 0..1, by class name; None for a class that does not occur.
        interval: (low, high) of the mIoU, where it is told.
    """

    name: str
    unseen: bool
    split: str | None
    images: int
    miou: float
    iou: Mapping[str, float | None]
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Figures:
    """How a network does, and how that was found out.

    Attributes:
        protocol: Its name, a colon, and what it does.
        domains: Each by itself.
    """

    protocol: str
    domains: tuple[DomainFigures, ...]

    @classmethod
    def of_run(cls, scores: Mapping[str, Any], protocol: str) -> Self:
        """Return the figures of a run's `scores.json`; `protocol` is its name and description."""
        return cls(
            protocol,
            tuple(
                DomainFigures(
                    name, phase == "target", None, saved["images"], saved["miou"], saved["iou"]
                )
                for phase in ("target", "source")
                for name, saved in scores[phase].items()
            ),
        )

    @classmethod
    def of_report(cls, report: Mapping[str, Any], sources: Sequence[str]) -> Self:
        """Return the figures of a `report.json` on a network that was trained on `sources`."""
        protocol, trained_on = report["protocol"], set(sources)
        datasets = {source for source in trained_on if ":" not in source}
        return cls(
            f"{protocol['name']}: {protocol['description']}, {report['precision']}",
            tuple(
                DomainFigures(
                    name,
                    domain not in trained_on and domain.partition(":")[0] not in datasets,
                    saved["split"],
                    saved["images"],
                    saved["miou"],
                    saved["iou"],
                    (saved["interval"]["low"], saved["interval"]["high"]),
                )
                for name, saved in report["targets"].items()
                for domain in [name.partition("@")[0]]
            ),
        )
