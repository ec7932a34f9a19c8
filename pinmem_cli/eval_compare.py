"""`pinmem eval compare`: reports side by side."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pinmem_cli.options import Json, examples
from pinmem_cli.output import Output, table
from pinmem_core.errors import ConfigError

if TYPE_CHECKING:
    from pinmem_core.evaluation.compare import Comparison, Contest

EXAMPLES = examples(
    "pinmem eval compare RUN OTHER-RUN",
    "pinmem eval compare first/report.json second/report.json --json",
)


def compare(
    reports: Annotated[
        list[str],
        typer.Argument(help="Two or more: a report's file or folder, or a run (its newest)."),
    ],
    json: Json = False,
) -> None:
    """Set reports side by side, each beside the first, with intervals of the differences."""
    from pinmem_core.evaluation.compare import SavedReport, find_report
    from pinmem_core.evaluation.compare import compare as compare_reports

    if len(reports) < 2:
        raise ConfigError("one report cannot be compared.", "Name two or more.")
    comparison = compare_reports([SavedReport.read(find_report(name)) for name in reports])
    Output(as_json=json).result(comparison.as_json(), *_shown(comparison))


def _shown(comparison: "Comparison") -> Iterator[str | Table]:
    reports, protocol = comparison.reports, comparison.reports[0].protocol
    heads = [f"{number}: {report.model}" for number, report in enumerate(reports, start=1)]
    for target, contests in comparison.targets.items():
        yield _contests(target, heads, contests)
        yield ""
    for seen, average in comparison.averages.items():
        yield _averages(f"mean of the {seen} targets", heads, average)
        yield ""
    yield f"protocol: {protocol['name']}: {protocol['description']}"
    for head, report in zip(heads, reports, strict=True):
        yield f"{head}, {report.precision}, {report.path}"


def _contests(target: str, heads: list[str], contests: Sequence["Contest"]) -> Table:
    """Return the table of one target; behind each IoU, what it is more than the first's."""
    from pinmem_core.checkpoints.model_card import seen_in_words

    first, others = contests[0], contests[1:]
    marked = (
        f"{head} ({seen_in_words(of.seen)})" for head, of in zip(heads, contests, strict=True)
    )
    rows = table(f"{target}, IoU %", *marked)
    for name, iou in first.iou.items():
        changed = (
            f"{_percent(of.iou[name])} {_signed(of.class_differences[name]):>6}" for of in others
        )
        rows.add_row(name, _percent(iou), *changed)
    rows.add_section()
    mious = (f"{_percent(of.miou)} {_signed(of.difference):>6}" for of in others)
    rows.add_row("mIoU", _percent(first.miou), *mious)
    intervals = (f"{_signed(low)}..{_signed(high)}" for low, high in (c.interval for c in others))
    rows.add_row("  95 % interval", "", *intervals)
    return rows


def _averages(title: str, heads: list[str], average: Sequence[float]) -> Table:
    rows = table(title, *heads)
    changed = (f"{_percent(miou)} {_signed(miou - average[0]):>6}" for miou in average[1:])
    rows.add_row("mIoU", _percent(average[0]), *changed)
    return rows


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _signed(share: float | None) -> str:
    return "" if share is None else f"{round(100 * share, 1) + 0.0:+.1f}"  # never -0.0
