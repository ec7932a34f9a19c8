"""The table of a study, computed from its reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Self

from pinmem_core.documents import json_text
from pinmem_core.errors import DataError
from pinmem_core.evaluation.bootstrap import mean_paired_interval
from pinmem_core.evaluation.compare import SavedReport
from pinmem_core.evaluation.results import LEVEL
from pinmem_core.files import write_atomic
from pinmem_core.study.sweep import Sweep, report_path


@dataclass(frozen=True)
class SeedScores:
    """mIoU, or its difference, over seeds.

    Attributes:
        values: One value per seed, in the order of the study; mIoU in 0..1, differences in -1..1.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return mean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of the values; None for one value."""
        return stdev(self.values) if len(self.values) > 1 else None

    def as_json(self) -> dict[str, Any]:
        """Return the values as JSON data."""
        return {"mean": self.mean, "deviation": self.deviation, "values": list(self.values)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build the object from the result of `as_json`."""
        return cls(tuple(data["values"]))

    def as_text(self, sign: str = "") -> str:
        """Return the mean ± deviation in points, e.g. "34.1 ± 0.8"."""
        deviation = "" if self.deviation is None else f" ± {100 * self.deviation:.1f}"
        return f"{100 * self.mean:{sign}.1f}{deviation}"


@dataclass(frozen=True)
class Difference:
    """Paired difference between a variant and a reference variant on a target.

    Attributes:
        reference: Name of the reference variant.
        points: Differences of mIoU by seed, in -1..1.
        interval: Interval (low, high) of their mean, by bootstrap over seeds and images.
    """

    reference: str
    points: SeedScores
    interval: tuple[float, float]

    def as_json(self) -> dict[str, Any]:
        """Return the values as JSON data."""
        return {"beside": self.reference, **self.points.as_json(), "interval": list(self.interval)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build the object from the result of `as_json`."""
        low, high = data["interval"]
        return cls(data["beside"], SeedScores.from_json(data), (low, high))


@dataclass(frozen=True)
class Row:
    """Results of one variant.

    Attributes:
        about: Description of the variant.
        seeds: Seeds with a report.
        source: Mean mIoU over the sources' validation splits, in 0..1.
        targets: mIoU by target, in 0..1.
        iou: IoU by target and class, mean over seeds, in 0..1; None for a class that does not
            occur.
        differences: Difference to the reference variant by target, over the seeds of both.
    """

    about: str
    seeds: tuple[int, ...]
    source: SeedScores
    targets: dict[str, SeedScores]
    iou: dict[str, dict[str, float | None]]
    differences: dict[str, Difference]

    def as_json(self) -> dict[str, Any]:
        """Return the values as JSON data."""
        return {
            "about": self.about,
            "seeds": list(self.seeds),
            "source": self.source.as_json(),
            "targets": {target: scores.as_json() for target, scores in self.targets.items()},
            "iou": self.iou,
            "differences": {target: d.as_json() for target, d in self.differences.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build the object from the result of `as_json`."""
        return cls(
            data["about"],
            tuple(data["seeds"]),
            SeedScores.from_json(data["source"]),
            {target: SeedScores.from_json(scores) for target, scores in data["targets"].items()},
            data["iou"],
            {target: Difference.from_json(d) for target, d in data["differences"].items()},
        )


@dataclass(frozen=True)
class StudyTable:
    """The table of a study.

    Attributes:
        title: Title of the study.
        protocol: Name and description of the protocol, "NAME: DESCRIPTION".
        rows: Results by variant, without variants that have no report.
    """

    title: str
    protocol: str
    rows: dict[str, Row]

    def as_json(self) -> dict[str, Any]:
        """Return the table as JSON data."""
        return {
            "schema_version": 1,
            "title": self.title,
            "protocol": self.protocol,
            "level": LEVEL,
            "variants": {name: row.as_json() for name, row in self.rows.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build the object from the result of `as_json`."""
        rows = {name: Row.from_json(row) for name, row in data["variants"].items()}
        return cls(data["title"], data["protocol"], rows)

    def as_markdown(self) -> str:
        """Return all tables as Markdown."""
        tables = [self.variants_as_markdown(), *map(self.classes_as_markdown, self._targets())]
        return "\n".join([*tables, f"Protocol: {self.protocol}", ""])

    def variants_as_markdown(self) -> str:
        """Return the table of variants, with mIoU in % and differences in points."""
        heads = ["variant", "seeds", "sources, val"]
        for target in self._targets():
            heads += [target, "difference", f"{LEVEL:.0%} interval"]
        return _table(heads, [_cells(name, row) for name, row in self.rows.items()])

    def classes_as_markdown(self, target: str) -> str:
        """Return the table of the IoU in % for each class that occurs in a target."""
        by_variant = {name: row.iou[target] for name, row in self.rows.items()}
        classes = [n for n, iou in next(iter(by_variant.values())).items() if iou is not None]
        cells = [
            [f"`{name}`", *(_percent(iou[of]) for of in classes)]
            for name, iou in by_variant.items()
        ]
        return _table([f"IoU %, {target}", *classes], cells)

    def _targets(self) -> list[str]:
        return list(next(iter(self.rows.values())).targets)


def make_table(sweep: Sweep, folder: Path) -> StudyTable:
    """Return the table of all reports in a study's folder; write it to `study.json` and `study.md`.

    Raises:
        DataError: A report is damaged, or no report exists.
    """
    reports = {
        name: {
            seed: SavedReport.read(path)
            for seed in sweep.seeds
            if (path := report_path(folder, name, seed)).exists()
        }
        for name in sweep.variants
    }
    if not any(reports.values()):
        raise DataError(f"{folder} holds no report of this study yet.")
    rows = {name: _row(sweep, name, reports) for name in sweep.variants if reports[name]}
    protocol = next(r for by_seed in reports.values() for r in by_seed.values()).protocol
    table = StudyTable(sweep.title, f"{protocol['name']}: {protocol['description']}", rows)
    write_atomic(folder / "study.json", (json_text(table.as_json(), indent=1) + "\n").encode())
    write_atomic(folder / "study.md", table.as_markdown().encode())
    return table


def _row(sweep: Sweep, name: str, reports: Mapping[str, Mapping[int, SavedReport]]) -> Row:
    variant, ours = sweep.variants[name], reports[name]
    reference = variant.reference or sweep.baseline
    theirs = {} if name == reference else reports[reference]
    shared = [seed for seed in ours if seed in theirs]
    sources = [target for target in sweep.scored() if target not in sweep.targets]
    return Row(
        variant.about,
        tuple(ours),
        SeedScores(tuple(mean(r.targets[s].miou for s in sources) for r in ours.values())),
        {t: SeedScores(tuple(r.targets[t].miou for r in ours.values())) for t in sweep.targets},
        {t: _mean_iou([r.targets[t].iou for r in ours.values()]) for t in sweep.targets},
        {
            target: _difference(reference, target, [(theirs[s], ours[s]) for s in shared])
            for target in sweep.targets
            if shared
        },
    )


def _difference(
    reference: str, target: str, pairs: Sequence[tuple[SavedReport, SavedReport]]
) -> Difference:
    scored = [(first.targets[target], second.targets[target]) for first, second in pairs]
    points = SeedScores(tuple(second.miou - first.miou for first, second in scored))
    images = [(first.images, second.images) for first, second in scored]
    return Difference(reference, points, mean_paired_interval(images, level=LEVEL))


def _mean_iou(of_seeds: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    known = {name: [iou[name] for iou in of_seeds] for name in of_seeds[0]}
    return {
        name: None if None in values else mean(v for v in values if v is not None)
        for name, values in known.items()
    }


def _cells(name: str, row: Row) -> list[str]:
    cells = [f"`{name}`: {row.about}", str(len(row.seeds)), row.source.as_text()]
    for target, scores in row.targets.items():
        cells.append(scores.as_text())
        difference = row.differences.get(target)
        if difference is None:
            cells += ["", ""]
            continue
        low, high = difference.interval
        cells.append(f"{difference.points.as_text('+')} (`{difference.reference}`)")
        cells.append(f"{100 * low:+.1f} to {100 * high:+.1f}")
    return cells


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
