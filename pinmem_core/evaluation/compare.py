"""Compare reports on the same images, protocol and classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pinmem_core.checkpoints.checkpoint import WEIGHTS, weights_sha256
from pinmem_core.checkpoints.hub import checkpoint_of, run_folder
from pinmem_core.checkpoints.model_card import seen_in_words
from pinmem_core.documents import read_json_object
from pinmem_core.errors import ConfigError, DataError, shell_join
from pinmem_core.evaluation.bootstrap import paired_interval
from pinmem_core.evaluation.plots import DifferencePoint, plot_differences
from pinmem_core.evaluation.report import DATA, themed
from pinmem_core.evaluation.results import LEVEL, SCHEMA_VERSION, ImageResult, image_counts
from pinmem_core.label_space import CITYSCAPES, MOST_CLASSES
from pinmem_core.templates import render

_READABLE = (1, SCHEMA_VERSION)
LARGEST_REPORT = 1 << 28
"""Maximum size of a `report.json` in bytes; one of a million images is smaller."""

_TEMPLATE = Path(__file__).parent / "templates" / "compare.html"

_Share = Annotated[float, Field(ge=0, le=1)]
_Cell = Annotated[int, Field(ge=0, lt=MOST_CLASSES * (MOST_CLASSES + 1))]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _SavedImage(_Strict):
    id: str
    cells: list[_Cell]
    pixels: list[Annotated[int, Field(ge=0, lt=1 << 40)]]

    @model_validator(mode="after")
    def _each_cell_has_one_count(self) -> Self:
        if not len(set(self.cells)) == len(self.cells) == len(self.pixels):
            raise ValueError("a cell has no count, or several")
        return self


class SavedTarget(_Strict):
    """One target in a `report.json`."""

    split: str
    dataset_digest: str
    miou: _Share
    """Mean IoU over the classes that occur."""
    iou: dict[str, _Share | None]
    """IoU by class name; None for a class that does not occur."""
    per_image: list[_SavedImage] = Field(min_length=1)
    seen: bool | None = None
    """Whether the network was trained on the domain; None if unknown (reports of version 1)."""
    label_space: str = CITYSCAPES.name
    """Name of the label space; earlier versions knew only one."""
    classes: list[str] = Field([*CITYSCAPES.names], max_length=MOST_CLASSES)
    """Names of the classes."""

    @model_validator(mode="after")
    def _has_its_classes(self) -> Self:
        if self.iou.keys() != {*self.classes} or len({*self.classes}) < len(self.classes):
            raise ValueError("it has other scores than classes")
        cells = len(self.classes) * (len(self.classes) + 1)
        if any(cell >= cells for image in self.per_image for cell in image.cells):
            raise ValueError("a cell belongs to no class")
        if len({image.id for image in self.per_image}) < len(self.per_image):
            raise ValueError("an image occurs twice")
        return self

    @cached_property
    def images(self) -> tuple[ImageResult, ...]:
        """Pixel counts of each image."""
        size = len(self.classes)
        return tuple(image_counts(image.model_dump(), size) for image in self.per_image)

    @cached_property
    def truth(self) -> list[int]:
        """Labelled pixels of all images by class."""
        counts = [0] * len(self.classes)
        for image in self.per_image:
            for cell, pixels in zip(image.cells, image.pixels, strict=True):
                counts[cell // (len(counts) + 1)] += pixels
        return counts


class SavedReport(_Strict):
    """Content of a `report.json`."""

    path: Path
    model: str
    """Name of the run."""
    protocol: dict[str, Any]
    """Name, description and fields of the protocol."""
    precision: str
    classes: list[str]
    unfinished: dict[str, int] | None = None
    """Iterations done ("iteration") and of all ("iterations"), if the training is unfinished."""
    targets: dict[str, SavedTarget] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_what_tables_show(self) -> Self:
        if not all(isinstance(self.protocol.get(key), str) for key in ("name", "description")):
            raise ValueError("the protocol has no name or description")
        return self

    @classmethod
    def read(cls, path: Path) -> "SavedReport":
        """Read a `report.json`.

        Raises:
            DataError: The file is no report, is damaged, or has an unknown schema version.
        """
        try:
            data = read_json_object(path, LARGEST_REPORT)
        except DataError as error:
            raise DataError(f"{path} is no report of an evaluation: {error.message}") from error
        version = data.get("schema_version")
        if version is None:
            raise DataError(f"{path} is no report of an evaluation: it has no version.")
        if version not in _READABLE:
            raise DataError(
                f"{path} was written by another version of pinmem.", "Evaluate the run again."
            )
        try:
            return cls.model_validate({**data, "path": path})
        except ValidationError as error:
            first = error.errors()[0]
            what = ": ".join((*map(str, first["loc"]), first["msg"]))
            raise DataError(
                f"the report {path} is damaged: {what}.", "Evaluate the run again."
            ) from error


def find_report(text: str) -> Path:
    """Return the path of a report.

    Args:
        text: File or folder of a report; or a run, for its newest report; or a model on the Hub,
            for its newest local report, or else the report in its repository.

    Reports on other weights than the run or model has now are left out.

    Raises:
        DataError: The report does not exist.
        MachineError: The Hub cannot be reached.
    """
    if Path(text).is_file():
        return Path(text)
    checkpoint = checkpoint_of(text)
    folder = run_folder(checkpoint)
    places = folder.glob(DATA), folder.glob(f"eval/*/{DATA}"), checkpoint.glob(DATA)
    reports = next(filter(None, map(list, places)), [])
    digest = weights_sha256(checkpoint) if (checkpoint / WEIGHTS).is_file() else None
    for path in sorted(reports, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if digest is None or _digest_in(path) in (None, digest):
            return path
    of_others = " on its present weights, only on others" if reports else ""
    hint = f"Make one: 'pinmem eval {shell_join(text)}'."
    if reports:
        hint += " A report on other weights is compared by the name of its file."
    raise DataError(f"{folder} holds no report{of_others}.", hint)


def _digest_in(report: Path) -> str | None:
    """Return the SHA-256 of the weights in a `report.json`; None if the file is damaged."""
    try:
        return str(read_json_object(report, LARGEST_REPORT)["checkpoint"]["weights_sha256"])
    except (DataError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class TargetScores:
    """Scores of one report on a target, compared with the first report.

    Attributes:
        miou: Mean IoU in 0..1.
        iou: IoU by class name, in 0..1; None for a class that does not occur.
        difference: mIoU minus the first report's mIoU.
        interval: Interval (low, high) of the difference, by the bootstrap over images.
        class_differences: IoU minus the first report's IoU, by class name; None for a class that
            does not occur.
        seen: Whether the network was trained on the target; None if unknown.
        label_space: Name of the label space of the classes.
    """

    miou: float
    iou: dict[str, float | None]
    difference: float
    interval: tuple[float, float]
    class_differences: dict[str, float | None]
    seen: bool | None
    label_space: str

    @property
    def separated(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        return self.interval[0] * self.interval[1] > 0


@dataclass(frozen=True)
class Comparison:
    """Comparison of reports.

    Attributes:
        reports: Compared reports; the first is the baseline.
        targets: Scores of each report, by the target's name.
        averages: Mean mIoU per report over the targets that are unseen in all reports, and over
            those that are seen in all; for each label space, if there are several. Groups of fewer
            than two targets are left out.
    """

    reports: tuple[SavedReport, ...]
    targets: dict[str, tuple[TargetScores, ...]]
    averages: dict[str, tuple[float, ...]]

    @property
    def heads(self) -> list[str]:
        """Numbers and names of the reports."""
        return [f"{number}: {report.model}" for number, report in enumerate(self.reports, start=1)]

    def as_html(self) -> str:
        """Return a self-contained HTML page with a plot of the differences."""
        panels = {
            target: [
                DifferencePoint(name, of.difference, of.interval, None, of.separated)
                for name, of in zip(self.heads[1:], scores[1:], strict=True)
            ]
            for target, scores in self.targets.items()
        }
        draw = partial(plot_differences, panels, f"mIoU, compared with {self.heads[0]}")
        return render(
            _TEMPLATE,
            comparison=self,
            heads=self.heads,
            differences=themed(draw),
            level=LEVEL,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON object; mIoU is in 0..1, differences are in -1..1."""
        return {
            "reports": [
                {
                    "path": str(report.path),
                    "model": report.model,
                    "precision": report.precision,
                    "unfinished": report.unfinished,
                }
                for report in self.reports
            ],
            "protocol": self.reports[0].protocol,
            "level": LEVEL,
            "targets": {name: [vars(c) for c in row] for name, row in self.targets.items()},
            "average_miou": self.averages,
        }


def compare(reports: Sequence[SavedReport]) -> Comparison:
    """Compare reports with the first one.

    Args:
        reports: At least two reports.

    Raises:
        ConfigError: There are fewer than two reports, or they differ in protocol, classes, targets,
            or the targets' data.
        DataError: The reports hold different images despite equal digests.
    """
    if len(reports) < 2:
        raise ConfigError("comparing needs two reports.", "Name two or more.")
    first = reports[0]
    for other in reports[1:]:
        _require_comparable(first, other)
    targets = {
        name: tuple(_compared(ours, report.targets[name]) for report in reports)
        for name, ours in first.targets.items()
    }
    return Comparison(tuple(reports), targets, _averages(targets))


def _averages(targets: Mapping[str, Sequence[TargetScores]]) -> dict[str, tuple[float, ...]]:
    groups: dict[str, list[Sequence[TargetScores]]] = {}
    several = len({row[0].label_space for row in targets.values()}) > 1
    for row in targets.values():
        seen = row[0].seen
        if seen is not None and all(scores.seen is seen for scores in row):
            group = seen_in_words(seen) + f" ({row[0].label_space})" * several
            groups.setdefault(group, []).append(row)
    return {
        group: tuple(mean(scores.miou for scores in column) for column in zip(*rows, strict=True))
        for group, rows in sorted(groups.items(), reverse=True)
        if len(rows) > 1
    }


def _require_comparable(first: SavedReport, other: SavedReport) -> None:
    """Raise ConfigError with the difference that makes two reports incomparable."""
    fields: list[tuple[str, object, object]] = [("protocol", first.protocol, other.protocol)]
    fields += [("set of classes", first.classes, other.classes)]
    fields += [("set of targets", {*first.targets}, {*other.targets})]
    for name in first.targets.keys() & other.targets.keys():
        ours, theirs = first.targets[name], other.targets[name]
        fields += [(f"set of classes of {name}", ours.classes, theirs.classes)]
        fields += [(f"split of {name}", ours.split, theirs.split)]
        fields += [(f"data of {name}", ours.dataset_digest, theirs.dataset_digest)]
    for what, one, another in fields:
        if one != another:
            if isinstance(one, set) and isinstance(another, set):
                what = f"{what}, by {', '.join(sorted(one ^ another))},"
            raise ConfigError(
                f"{first.path} and {other.path} cannot be compared: the {what} differs.",
                "Evaluate both runs with the same --protocol, --targets and --classes, on the same "
                "data.",
            )


def _compared(first: SavedTarget, other: SavedTarget) -> TargetScores:
    return TargetScores(
        other.miou,
        other.iou,
        other.miou - first.miou,
        paired_interval(first.images, other.images, level=LEVEL),
        {name: _less(other.iou[name], first.iou[name]) for name in other.iou},
        other.seen,
        other.label_space,
    )


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other
