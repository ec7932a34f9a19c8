"""The table of a study, computed from its reports."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, computed_field

from pinmem_core.checkpoints.model_card import seen_in_words
from pinmem_core.documents import json_text
from pinmem_core.errors import DataError
from pinmem_core.evaluation.bootstrap import mean_paired_interval
from pinmem_core.evaluation.compare import SavedReport
from pinmem_core.evaluation.results import LEVEL
from pinmem_core.files import write_atomic
from pinmem_core.study.sweep import Sweep, report_path


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=True)


class SeedScores(_Part):
    """mIoU, or its difference, over seeds."""

    values: tuple[float, ...]
    """One value per seed, in the order of the study; mIoU in 0..1, differences in -1..1."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def mean(self) -> float:
        """Mean of the values."""
        return mean(self.values)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of the values; None for one value."""
        return stdev(self.values) if len(self.values) > 1 else None

    def as_text(self, sign: str = "") -> str:
        """Return the mean ± deviation in points, e.g. "34.1 ± 0.8"."""
        deviation = "" if self.deviation is None else f" ± {100 * self.deviation:.1f}"
        return f"{100 * self.mean:{sign}.1f}{deviation}"


class Difference(SeedScores):
    """Paired difference between a variant and a reference variant on a target."""

    reference: str = Field(alias="beside")
    """Name of the reference variant."""
    interval: tuple[float, float]
    """Interval (low, high) of the mean, by bootstrap over seeds and images."""


class Row(_Part):
    """Results of one variant."""

    about: str
    """Description of the variant."""
    seeds: tuple[int, ...]
    """Seeds with a report."""
    source: SeedScores
    """Mean mIoU over the sources' validation splits, in 0..1."""
    targets: dict[str, SeedScores]
    """mIoU by target, in 0..1."""
    iou: dict[str, dict[str, float | None]]
    """IoU by target and class, mean over seeds, in 0..1; None for a class that does not occur."""
    differences: dict[str, Difference]
    """Difference to the reference variant by target, over the seeds of both."""


class StudyTable(_Part):
    """The table of a study."""

    title: str
    """Title of the study."""
    protocol: str
    """Name and description of the protocol, "NAME: DESCRIPTION"."""
    seen: dict[str, bool | None] = {}
    """Whether the networks were trained on each target; None if unknown or if they differ. Tables
    of older versions lack it."""
    rows: dict[str, Row] = Field(alias="variants")
    """Results by variant, without variants that have no report."""

    def as_json(self) -> dict[str, Any]:
        """Return the table as JSON data; `StudyTable.model_validate` reads it back."""
        data = self.model_dump(mode="json", by_alias=True)
        return {"schema_version": 1, "level": LEVEL, **data}

    def as_markdown(self) -> str:
        """Return all tables as Markdown."""
        tables = [self.variants_as_markdown(), *map(self.classes_as_markdown, self._targets())]
        return "\n".join([*tables, f"Protocol: {self.protocol}", ""])

    def variants_as_markdown(self) -> str:
        """Return the table of variants, with mIoU in % and differences in points."""
        heads = ["variant", "seeds", "sources, val"]
        for target in self.heads:
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

    @property
    def heads(self) -> list[str]:
        """Names of the targets, with "seen", "unseen" or "unknown"."""
        return [
            f"{target} ({seen_in_words(self.seen[target])})" if target in self.seen else target
            for target in self._targets()
        ]

    def _targets(self) -> list[str]:
        return list(next(iter(self.rows.values())).targets)


def make_table(sweep: Sweep, folder: Path) -> StudyTable:
    """Return the table of all reports in a study's folder; write it to `study.json` and `study.md`.

    Raises:
        DataError: A report is damaged, no report exists, or variants are scored in different
            classes.
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
    _require_same_classes(reports)
    rows = {name: _row(sweep, name, reports) for name in sweep.variants if reports[name]}
    every = [report for by_seed in reports.values() for report in by_seed.values()]
    protocol = every[0].protocol
    protocol_text = f"{protocol['name']}: {protocol['description']}"
    marks = {target: {of.targets[target].seen for of in every} for target in sweep.targets}
    seen = {target: mark.pop() if len(mark) == 1 else None for target, mark in marks.items()}
    table = StudyTable(title=sweep.title, protocol=protocol_text, seen=seen, rows=rows)
    write_atomic(folder / "study.json", (json_text(table.as_json(), indent=1) + "\n").encode())
    write_atomic(folder / "study.md", table.as_markdown().encode())
    return table


def _require_same_classes(reports: Mapping[str, Mapping[int, SavedReport]]) -> None:
    """Raise DataError if a target is scored in several sets of classes."""
    scored: dict[str, tuple[str, str, list[str]]] = {}
    for variant, by_seed in reports.items():
        for target, scores in ((t, s) for r in by_seed.values() for t, s in r.targets.items()):
            other, space, classes = scored.setdefault(
                target, (variant, scores.label_space, scores.classes)
            )
            if scores.classes != classes:
                raise DataError(
                    f"{target} is scored by the classes of {space} for {other}, and by those of "
                    f"{scores.label_space} for {variant}.",
                    "Give all variants the same 'classes'.",
                )


def _row(sweep: Sweep, name: str, reports: Mapping[str, Mapping[int, SavedReport]]) -> Row:
    variant, ours = sweep.variants[name], reports[name]
    reference = variant.reference or sweep.baseline
    theirs = {} if name == reference else reports[reference]
    shared = [seed for seed in ours if seed in theirs]
    sources = [target for target in sweep.scored() if target not in sweep.targets]
    of_sources = tuple(mean(r.targets[s].miou for s in sources) for r in ours.values())
    of_targets = {t: tuple(r.targets[t].miou for r in ours.values()) for t in sweep.targets}
    return Row(
        about=variant.about,
        seeds=tuple(ours),
        source=SeedScores(values=of_sources),
        targets={target: SeedScores(values=values) for target, values in of_targets.items()},
        iou={t: _mean_iou([r.targets[t].iou for r in ours.values()]) for t in sweep.targets},
        differences={
            target: _difference(reference, target, [(theirs[s], ours[s]) for s in shared])
            for target in sweep.targets
            if shared
        },
    )


def _difference(
    reference: str, target: str, pairs: Sequence[tuple[SavedReport, SavedReport]]
) -> Difference:
    scored = [(first.targets[target], second.targets[target]) for first, second in pairs]
    images = [(first.images, second.images) for first, second in scored]
    return Difference(
        reference=reference,
        values=tuple(second.miou - first.miou for first, second in scored),
        interval=mean_paired_interval(images, level=LEVEL),
    )


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
        cells.append(f"{difference.as_text('+')} (`{difference.reference}`)")
        cells.append(f"{100 * low:+.1f} to {100 * high:+.1f}")
    return cells


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
