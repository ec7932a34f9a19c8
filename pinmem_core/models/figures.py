"""Scores for a model card, read from a run's `scores.json` or from a `report.json`."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic.dataclasses import dataclass


def seen_in_words(seen: bool | None) -> str:
    """Return the word for `seen` in tables: "seen", "unseen" or "unknown"."""
    return {True: "seen", False: "unseen", None: "unknown"}[seen]


@dataclass(frozen=True)
class DomainFigures:
    """Scores of a network on one domain.

    Attributes:
        name: Name of the domain, `dataset[:domain]`.
        seen: Whether the network was trained on it; None where that is not known.
        split: Which split was scored; None where that is not told.
        images: How many were scored.
        miou: In 0..1, over the classes that occur; None where none does.
        iou: In 0..1, by class name; None for a class that does not occur.
        interval: (low, high) of the mIoU, where it is told.
    """

    name: str
    seen: bool | None
    split: str | None
    images: int
    miou: float | None
    iou: Mapping[str, float | None]
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Figures:
    """Scores of a network, and the protocol that produced them.

    Attributes:
        protocol: Name and description of the protocol, "NAME: DESCRIPTION".
        domains: Scores of each domain.
    """

    protocol: str
    domains: tuple[DomainFigures, ...]

    @classmethod
    def of_run(cls, scores: Mapping[str, Any], protocol: str) -> Self:
        """Return the scores of a run's `scores.json`.

        Args:
            scores: Content of `scores.json`.
            protocol: Name and description of the protocol.
        """
        return cls(
            protocol,
            tuple(
                DomainFigures(
                    name,
                    saved.get("seen", True if phase == "source" else None),
                    None,
                    saved["images"],
                    saved["miou"],
                    saved["iou"],
                )
                for phase in ("target", "source")
                for name, saved in scores[phase].items()
            ),
        )

    @classmethod
    def of_report(cls, report: Mapping[str, Any]) -> Self:
        """Return the scores of a `report.json`."""
        protocol = report["protocol"]
        return cls(
            f"{protocol['name']}: {protocol['description']}, {report['precision']}",
            tuple(
                DomainFigures(
                    name,
                    saved.get("seen"),
                    saved["split"],
                    saved["images"],
                    saved["miou"],
                    saved["iou"],
                    (saved["interval"]["low"], saved["interval"]["high"]),
                )
                for name, saved in report["targets"].items()
            ),
        )
