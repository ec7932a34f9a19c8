"""Setting reports side by side: only where they are about the same images, in the same way."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from pinmem_core.errors import ConfigError, DataError
from pinmem_core.evaluation.intervals import paired_interval
from pinmem_core.evaluation.report import DATA
from pinmem_core.evaluation.report_data import LEVEL, SCHEMA_VERSION, image_counts
from pinmem_core.evaluation.results import ImageResult
from pinmem_core.model.figures import seen_in_words
from pinmem_core.model.found import checkpoint_of, run_folder

_READABLE = (1, SCHEMA_VERSION)


@dataclass(frozen=True)
class SavedTarget:
    """What `report.json` holds of one target.

    Attributes:
        split: Which split was scored.
        dataset_digest: Of the prepared dataset.
        miou: Over the classes that occur, in 0..1.
        iou: By class name; None for a class that does not occur.
        images: The counts of each.
        seen: Whether the network was trained on the domain; None where that is not known.
    """

    split: str
    dataset_digest: str
    miou: float
    iou: dict[str, float | None]
    images: tuple[ImageResult, ...]
    seen: bool | None = None


@dataclass(frozen=True)
class SavedReport:
    """A `report.json`.

    Attributes:
        path: The file.
        model: Name of the run.
        protocol: As the file has it: name, description, fields.
        precision: Of the network's convolutions.
        classes: Names of the classes that were scored.
        targets: By name.
    """

    path: Path
    model: str
    protocol: dict[str, Any]
    precision: str
    classes: tuple[str, ...]
    targets: dict[str, SavedTarget]

    @classmethod
    def read(cls, path: Path) -> "SavedReport":
        """Read a `report.json`.

        Raises:
            DataError: The file is no report, or of another version of pinmem.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            version = data["schema_version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no report of 'pinmem eval': {error}.") from error
        if version not in _READABLE:
            raise DataError(
                f"{path} was written by another version of pinmem.", "Evaluate the run again."
            )
        try:
            return cls._of(path, data)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"the report {path} is damaged: {error!r}.", "Evaluate the run again."
            ) from error

    @classmethod
    def _of(cls, path: Path, data: dict[str, Any]) -> "SavedReport":
        targets = {
            name: SavedTarget(
                saved["split"],
                saved["dataset_digest"],
                saved["miou"],
                saved["iou"],
                tuple(image_counts(image) for image in saved["per_image"]),
                saved.get("seen"),  # which reports of version 1 do not say
            )
            for name, saved in data["targets"].items()
        }
        return cls(
            path,
            data["model"],
            data["protocol"],
            data["precision"],
            tuple(data["classes"]),
            targets,
        )


def find_report(text: str) -> Path:
    """Return the file that `text` means: a report's file or folder, or a run's newest report.

    Of a model on the Hub: the newest that was made here, or else the one that came with it.

    Raises:
        DataError: There is no such report.
        MachineError: The Hub is asked, and cannot be reached.
    """
    if Path(text).is_file():
        return Path(text)
    checkpoint = checkpoint_of(text)
    folder = run_folder(checkpoint)
    if (folder / DATA).exists():
        return folder / DATA
    reports = [*folder.glob(f"eval/*/{DATA}")] or [*checkpoint.glob(DATA)]
    if not reports:
        raise DataError(f"{folder} holds no report.", f"Make one: 'pinmem eval {text}'.")
    return max(reports, key=lambda path: path.stat().st_mtime_ns)


@dataclass(frozen=True)
class Contest:
    """How one report does on a target, beside the first report.

    Attributes:
        miou: In 0..1.
        iou: By class name; None for a class that does not occur.
        difference: mIoU less the first's.
        interval: (low, high) of the difference, by the bootstrap over images.
        class_differences: IoU less the first's, by class; None for one that does not occur.
        seen: Whether its network was trained on the target; None where that is not known.
    """

    miou: float
    iou: dict[str, float | None]
    difference: float
    interval: tuple[float, float]
    class_differences: dict[str, float | None]
    seen: bool | None


@dataclass(frozen=True)
class Comparison:
    """Reports side by side.

    Attributes:
        reports: The first is what the others are compared with.
        targets: By name, a contest for each report.
        averages: Mean of the targets' mIoU for each report: of the targets that are unseen in all
            reports, and of those that are seen in all. A group of fewer than two is left out.
    """

    reports: tuple[SavedReport, ...]
    targets: dict[str, tuple[Contest, ...]]
    averages: dict[str, tuple[float, ...]]

    def as_json(self) -> dict[str, Any]:
        """Return the comparison for programs; shares and differences are in -1..1."""
        return {
            "reports": [
                {"path": str(report.path), "model": report.model, "precision": report.precision}
                for report in self.reports
            ],
            "protocol": self.reports[0].protocol,
            "level": LEVEL,
            "targets": {name: [vars(c) for c in row] for name, row in self.targets.items()},
            "average_miou": self.averages,
        }


def compare(reports: Sequence[SavedReport]) -> Comparison:
    """Set reports side by side.

    Args:
        reports: Two or more.

    Raises:
        ConfigError: They differ in protocol, classes, targets, or the targets' data.
        DataError: They hold other images, though they say otherwise.
    """
    first = reports[0]
    for other in reports[1:]:
        _require_comparable(first, other)
    targets = {
        name: tuple(_contest(ours, report.targets[name]) for report in reports)
        for name, ours in first.targets.items()
    }
    averages = {
        seen_in_words(seen): tuple(mean(contest.miou for contest in group) for group in columns)
        for seen in (False, True)
        if len(rows := [r for r in targets.values() if all(c.seen is seen for c in r)]) > 1
        for columns in [zip(*rows, strict=True)]
    }
    return Comparison(tuple(reports), targets, averages)


def _require_comparable(first: SavedReport, other: SavedReport) -> None:
    """Raise ConfigError that names what differs, where that makes figures incomparable."""
    facts = {
        "protocol": lambda report: report.protocol,
        "set of classes": lambda report: report.classes,
        "set of targets": lambda report: set(report.targets),
    } | {
        f"{what} of {name}": lambda report, name=name, key=key: getattr(report.targets[name], key)
        for name in first.targets
        for what, key in (("split", "split"), ("data", "dataset_digest"))
    }
    for what, of in facts.items():
        if of(first) != of(other):
            raise ConfigError(
                f"{first.path} and {other.path} cannot be compared: the {what} differs.",
                "Evaluate both runs with the same --protocol and --targets, on the same data.",
            )


def _contest(first: SavedTarget, other: SavedTarget) -> Contest:
    return Contest(
        other.miou,
        other.iou,
        other.miou - first.miou,
        paired_interval(first.images, other.images, level=LEVEL),
        {name: _less(other.iou[name], first.iou[name]) for name in other.iou},
        other.seen,
    )


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other
