"""The numbers of a study's table, computed from its reports."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, computed_field

from pinmem_core.checkpoints.model_card import seen_in_words
from pinmem_core.errors import DataError
from pinmem_core.evaluation.bootstrap import average_paired_interval, student_interval
from pinmem_core.evaluation.compare import SavedReport, SavedTarget
from pinmem_core.evaluation.results import LEVEL
from pinmem_core.study.run import Cost, read_cost
from pinmem_core.study.sweep import Run, Sweep, report_path

AVERAGE = "average"
"""Key of the average over unseen targets, or over folds."""


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

    @computed_field  # type: ignore[prop-decorator]
    @property
    def student(self) -> tuple[float, float] | None:
        """Student's t interval of the mean over seeds; None for one value."""
        return student_interval(self.values, level=LEVEL)

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

    @computed_field  # type: ignore[prop-decorator]
    @property
    def separated(self) -> bool:
        """Whether both intervals exclude 0; never for one seed, whose training may be chance."""
        both = (self.interval, self.student)
        return all(ends is not None and ends[0] * ends[1] > 0 for ends in both)


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
    average: SeedScores | None = None
    """Mean mIoU over the targets of `StudyTable.averaged`, in 0..1."""
    average_difference: Difference | None = None
    """Difference of the averages to the reference variant, over the seeds of both."""
    kind: Literal["placebo", "ablation"] | None = None
    """Whether this is a placebo of the variant `base`, or an ablation within its checkpoints."""
    base: str | None = None
    """Variant that this one is a placebo or an ablation of."""
    effects: dict[str, Difference] = {}
    """Difference of `base` minus this variant by target, or "average"."""
    costs: tuple[Cost | None, ...] = ()
    """Cost of each run, in the order of the seeds; None where it is unknown."""

    def columns(self) -> Iterator[tuple[str, SeedScores, Difference | None]]:
        """Yield name, scores and difference of each target, and of the average."""
        for target, scores in self.targets.items():
            yield target, scores, self.differences.get(target)
        if self.average:
            yield AVERAGE, self.average, self.average_difference


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
    averaged: tuple[str, ...] = ()
    """Targets of the average, each "FOLD: TARGET" in a study of folds; all are unseen, or all are
    seen, and all are scored in the same classes: those of the most targets."""
    sources_averaged: tuple[str, ...] = ()
    """Folds of the mean over the sources in a study of folds: their sources are scored in the same
    classes, those of the most folds. Tables of older versions lack it."""
    best: dict[str, str | None] = {}
    """By target, or "average", the variant of the highest mean if it is separated from each other
    variant."""
    missing: tuple[str, ...] = ()
    """Names of the runs without a report."""
    folds: "dict[str, StudyTable]" = {}
    """Table of each fold; the table that holds them has no targets of its own."""

    def as_json(self) -> dict[str, Any]:
        """Return the table as JSON data; `StudyTable.model_validate` reads it back."""
        data = self.model_dump(mode="json", by_alias=True)
        return {"schema_version": 1, "level": LEVEL, **data}

    def head(self, column: str) -> str:
        """Return the heading of a target or of the average, with "seen" or "unseen" if known."""
        if column != AVERAGE:
            known = column in self.seen
            return f"{column} ({seen_in_words(self.seen[column])})" if known else column
        marks = {seen for table in (self, *self.folds.values()) for seen in table.seen.values()}
        seen = "seen" if marks == {True} else "unseen"
        folds = {name.partition(": ")[0] for name in self.averaged}
        count, unit = (len(folds), "fold") if self.folds else (len(self.averaged), "target")
        return f"mean of {count} {unit}{'s' * (count > 1)} ({seen})"

    @property
    def columns(self) -> list[str]:
        """Names of the targets, and "average" if there is one."""
        return [*dict.fromkeys(name for row in self.rows.values() for name, _, _ in row.columns())]


class _Cell(NamedTuple):
    """A target of a fold."""

    fold: str
    target: str


_Reports = Mapping[str, Mapping[str, Mapping[int, SavedReport]]]
"""Reports by fold, variant and seed."""


def make_table(sweep: Sweep, folder: Path) -> StudyTable:
    """Return the table of all reports in a study's folder.

    Raises:
        DataError: A report is damaged, no report exists, or variants are scored in different
            classes or on different data.
    """
    parts = sweep.parts()
    reports = {fold: _read(part, folder / fold) for fold, part in parts.items()}
    tables = {
        fold: _table(part, folder / fold, reports[fold])
        for fold, part in parts.items()
        if any(reports[fold].values())
    }
    if not tables:
        raise DataError(f"{folder} holds no report of this study yet.")
    missing = (
        str(Run(fold, name, seed))
        for fold, part in parts.items()
        for name, seed in part.runs()
        if seed not in reports[fold][name]
    )
    table = tables[""] if "" in tables else _over_folds(sweep, tables, reports)
    return table.model_copy(update={"missing": tuple(missing)})


def _read(sweep: Sweep, folder: Path) -> dict[str, dict[int, SavedReport]]:
    reports = {
        name: {
            seed: SavedReport.read(path)
            for seed in sweep.seeds
            if (path := report_path(folder, name, seed)).exists()
        }
        for name in sweep.variants
    }
    _require_same_data(reports)
    return reports


def _require_same_data(reports: Mapping[str, Mapping[int, SavedReport]]) -> None:
    """Raise DataError if a target is scored in several sets of classes, or its labels changed."""
    scored: dict[str, tuple[str, SavedTarget]] = {}
    for variant, by_seed in reports.items():
        for seed, report in by_seed.items():
            for target, scores in report.targets.items():
                other, first = scored.setdefault(target, (f"{variant}-{seed}", scores))
                if scores.classes != first.classes:
                    raise DataError(
                        f"{target} is scored by the classes of {first.label_space} for {other}, "
                        f"and by those of {scores.label_space} for {variant}-{seed}.",
                        "Give all variants the same 'classes'.",
                    )
                same_labels = scores.dataset_digest == first.dataset_digest
                if not same_labels or scores.truth != first.truth:
                    what = "a card of other 'maps'" if same_labels else "other data"
                    raise DataError(
                        f"{target} was prepared with {what} for {variant}-{seed} than for {other}.",
                        "Prepare it as before, and remove one of these runs; the same command "
                        "trains it again.",
                    )


def _table(
    sweep: Sweep, folder: Path, reports: Mapping[str, Mapping[int, SavedReport]]
) -> StudyTable:
    """Return the table of one study, or of one fold."""
    every = [report for by_seed in reports.values() for report in by_seed.values()]
    marks = {target: {of.targets[target].seen for of in every} for target in sweep.targets}
    seen = {target: mark.pop() if len(mark) == 1 else None for target, mark in marks.items()}
    unseen = [_Cell("", target) for target in sweep.targets if seen[target] is False]
    averaged = _of_same_classes(unseen, {"": reports})
    columns = {target: [_Cell("", target)] for target in sweep.targets}
    if len(averaged) > 1:
        columns[AVERAGE] = averaged
    comparison = _Comparison(sweep, columns, {"": reports})
    sources = sweep.scored_sources()
    rows = {
        name: comparison.row(
            name,
            tuple(of),
            tuple(mean(r.targets[s].miou for s in sources) for r in of.values()),
            iou={t: _mean_iou([r.targets[t].iou for r in of.values()]) for t in sweep.targets},
            costs=tuple(read_cost(folder, name, seed) for seed in of),
        )
        for name in _order(sweep)
        if (of := reports[name])
    }
    protocol = every[0].protocol
    return StudyTable(
        title=sweep.title,
        protocol=f"{protocol['name']}: {protocol['description']}",
        seen=seen,
        rows=rows,
        averaged=tuple(cell.target for cell in columns.get(AVERAGE, ())),
        best=comparison.best(),
    )


def _over_folds(sweep: Sweep, tables: Mapping[str, StudyTable], reports: _Reports) -> StudyTable:
    """Return the table of the averages over the folds, of the seeds that all folds have."""
    marks = {_Cell(f, t): seen for f, table in tables.items() for t, seen in table.seen.items()}
    unseen = [cell for cell, seen in marks.items() if seen is False]
    reports = {fold: reports[fold] for fold in tables}
    alike = _of_same_classes(unseen or [cell for cell, seen in marks.items() if seen], reports)
    parts = sweep.parts()
    sources = [_Cell(fold, parts[fold].scored_sources()[0]) for fold in tables]
    source_folds = [cell.fold for cell in _of_same_classes(sources, reports)]
    comparison = _Comparison(sweep, {AVERAGE: alike}, reports)
    rows = {}
    for name in _order(sweep):
        if seeds := comparison.seeds(name):
            of_folds = [tables[fold].rows[name] for fold in source_folds]
            means = (mean(row.source.values[row.seeds.index(s)] for row in of_folds) for s in seeds)
            rows[name] = comparison.row(name, seeds, tuple(means))
    first = next(iter(tables.values()))
    return StudyTable(
        title=sweep.title,
        protocol=first.protocol,
        rows=rows,
        averaged=tuple(f"{cell.fold}: {cell.target}" for cell in alike),
        sources_averaged=tuple(source_folds),
        best=comparison.best(),
        folds=dict(tables),
    )


def _of_same_classes(cells: Sequence[_Cell], reports: _Reports) -> list[_Cell]:
    """Return those of the cells that are scored in the same classes, the most if these differ."""
    groups: dict[tuple[str, ...], list[_Cell]] = {}
    for cell in cells:
        report = next(r for by_seed in reports[cell.fold].values() for r in by_seed.values())
        groups.setdefault(tuple(report.targets[cell.target].classes), []).append(cell)
    return max(groups.values(), key=len, default=[])


def _order(sweep: Sweep) -> Iterator[str]:
    """Yield the variants of the file, each followed by its placebos."""
    for name, variant in sweep.variants.items():
        if not variant.placebo_of:
            yield name
            yield from (other for other, of in sweep.variants.items() if of.placebo_of == name)


class _Comparison:
    """Scores and paired differences of variants in columns, each a mean over cells."""

    def __init__(
        self, sweep: Sweep, columns: Mapping[str, Sequence[_Cell]], reports: _Reports
    ) -> None:
        self.sweep = sweep
        self.columns = {name: cells for name, cells in columns.items() if cells}
        self.reports = reports

    def row(
        self, name: str, seeds: tuple[int, ...], sources: tuple[float, ...], **more: Any
    ) -> Row:
        """Return the row of a variant."""
        variant = self.sweep.variants[name]
        scores = {
            column: SeedScores(values=tuple(self._miou(name, cells, seed) for seed in seeds))
            for column, cells in self.columns.items()
        }
        differences = self._differences(name, variant.reference or self.sweep.baseline)
        effects = self._differences(variant.base, name) if variant.base else {}
        return Row(
            about=variant.about,
            seeds=seeds,
            source=SeedScores(values=sources),
            average=scores.pop(AVERAGE, None),
            targets=scores,
            average_difference=differences.pop(AVERAGE, None),
            differences=differences,
            kind="placebo" if variant.placebo_of else "ablation" if variant.of else None,
            base=variant.base,
            effects=effects,
            **{"iou": {}, **more},
        )

    def best(self) -> dict[str, str | None]:
        """Return the variant of the highest mean in each column, or None if it is not separated."""
        names = [name for name in self.sweep.variants if self.seeds(name)]
        return {
            column: self._best(column, names) if len(names) > 1 else None for column in self.columns
        }

    def _best(self, column: str, names: Sequence[str]) -> str | None:
        cells = self.columns[column]
        means = {n: mean(self._miou(n, cells, seed) for seed in self.seeds(n)) for n in names}
        best = max(means, key=lambda name: means[name])
        others = (name for name in names if name != best)
        apart = all((d := self._difference(best, o, cells)) and d.separated for o in others)
        return best if apart else None

    def seeds(self, name: str) -> tuple[int, ...]:
        """Return the seeds of a variant that all folds have."""
        has = [of[name] for of in self.reports.values()]
        return tuple(seed for seed in self.sweep.seeds if all(seed in of for of in has))

    def _scored(self, name: str, cell: _Cell, seed: int) -> SavedTarget:
        return self.reports[cell.fold][name][seed].targets[cell.target]

    def _miou(self, name: str, cells: Sequence[_Cell], seed: int) -> float:
        return mean(self._scored(name, cell, seed).miou for cell in cells)

    def _differences(self, name: str, reference: str) -> dict[str, Difference]:
        pairs = {
            column: self._difference(name, reference, cells)
            for column, cells in self.columns.items()
        }
        return {column: difference for column, difference in pairs.items() if difference}

    def _difference(self, name: str, reference: str, cells: Sequence[_Cell]) -> Difference | None:
        """Return a variant minus another one; None for the same, or without a common seed."""
        shared = [seed for seed in self.seeds(name) if seed in self.seeds(reference)]
        if name == reference or not shared:
            return None
        images = [
            [
                (self._scored(reference, cell, s).images, self._scored(name, cell, s).images)
                for s in shared
            ]
            for cell in cells
        ]
        values = (self._miou(name, cells, s) - self._miou(reference, cells, s) for s in shared)
        return Difference(
            reference=reference,
            values=tuple(values),
            interval=average_paired_interval(
                images, names=[cell.target for cell in cells], level=LEVEL
            ),
        )


def _mean_iou(of_seeds: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    known = {name: [iou[name] for iou in of_seeds] for name in of_seeds[0]}
    return {
        name: None if None in values else mean(v for v in values if v is not None)
        for name, values in known.items()
    }
