"""`pinmem eval` and `pinmem eval compare`: score a model on domains, and compare reports."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.table import Table

from pinmem_cli.names import known_datasets, label_spaces, models, protocols, runs
from pinmem_cli.options import (
    Compile,
    Device,
    Json,
    Precision,
    Quiet,
    argument,
    names,
    option,
    shell_join,
)
from pinmem_cli.output import Output, table
from pinmem_core.templates import percent, points

if TYPE_CHECKING:
    from pinmem_core.evaluation import Report
    from pinmem_core.evaluation.compare import Comparison, TargetScores

EXAMPLES = (
    "pinmem eval RUN --targets camvid:0001TP,demo:dusk",
    "pinmem eval RUN --protocol paper-eval --json",
    "pinmem eval RUN --targets camvid --classes idd-level1",
    "pinmem eval RUN --targets demo:dusk --memory",
    "pinmem eval compare RUN OTHER-RUN",
)


def evaluate(
    run: Annotated[
        str,
        argument(
            "Run (folder or name), checkpoint folder, starter, last, or user/name@revision.",
            complete=models,
        ),
    ],
    targets: Annotated[
        list[str] | None,
        option(
            "DATASET, DATASET:DOMAIN or ...@SPLIT to score on; default: the run's targets.",
            metavar="DOMAIN,...",
            complete=known_datasets,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        option(
            "{protocols}; or one with changes, e.g. paper-train+flip+scales=0.5,1. "
            "Default: the model's own, else paper-train.",
            complete=protocols,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        option(
            "Label space to score in: {label_spaces}, or the model's or a target's own. Default: "
            "the model's classes, or coarser ones where the labels need it.",
            complete=label_spaces,
        ),
    ] = None,
    precision: Precision = "float32",
    compile: Compile = False,
    device: Device = "auto",
    output: Annotated[
        Path | None,
        option(
            "Folder to create for the report; default: RUN/eval/PROTOCOL-TIME.",
            "--output",
            "-o",
            panel="Output",
        ),
    ] = None,
    no_pictures: Annotated[
        bool,
        option(
            "Leave images and pictures of the memory out of the report, which is faster.",
            "--no-pictures",
            panel="Output",
        ),
    ] = False,
    memory: Annotated[
        bool,
        option(
            "Measure whether the network uses its memory: what it reads, and the mIoU without.",
            "--memory",
        ),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a trained model on domains, and write a report.

    'pinmem eval compare' compares reports.
    """
    from pinmem_core.checkpoints.config_file import read_config
    from pinmem_core.checkpoints.hub import checkpoint_of
    from pinmem_core.evaluation.report import PAGE, PROTOCOL, evaluate_run, new_report_folder
    from pinmem_core.inference import get_protocol, protocol_of

    if protocol:
        get_protocol(protocol)
    out = Output(as_json=json, quiet=quiet)
    with out.listening() as listener:
        checkpoint = checkpoint_of(run, on_event=listener)
        config = read_config(checkpoint)
        if protocol is None:
            protocol = protocol_of(config, PROTOCOL)
            if "protocol" in config:
                out.note(f"protocol: {protocol}, the model's own; --protocol names another")
        folder = output or new_report_folder(checkpoint, protocol)
        try:
            report = evaluate_run(
                str(checkpoint),
                names(targets),
                protocol=protocol,
                classes=classes,
                precision=precision,
                compile=compile,
                device=device,
                output=folder,
                pictures=not no_pictures,
                memory=memory,
                on_event=listener,
            )
        finally:
            if output is None:
                with suppress(OSError):  # it holds a report
                    folder.rmdir()
    data = report.as_json()
    for target in data["targets"].values():
        for key in ("counts", "missed", "per_image"):  # thousands of lines
            del target[key]
    data |= {"protocol": report.protocol, "checkpoint": str(report.checkpoint)}
    out.result(
        data | {"report": str(folder)},
        *_tables(report),
        *_memory_tables(report),
        f"protocol: {report.protocol}, {precision}",
        f"checkpoint: {report.checkpoint}{_progress(report.origin.unfinished)}",
        f"report: {folder / PAGE}",
    )
    first, scored = next(iter(data["targets"].items()))
    image = _an_image(first, scored["split"])
    out.next_step(f"pinmem predict {shell_join(image)} -o mask.png --model {shell_join(run)}")


def _progress(unfinished: tuple[int, int] | None) -> str:
    from pinmem_core.checkpoints.model_card import progress_in_words

    return f" ({progress_in_words(unfinished)})" if unfinished else ""


def _an_image(domain: str, split: str) -> Path:
    """Return the path of an image of a domain that was scored on `split`."""
    from pinmem_core.data.prepared import Selection, select

    return select(Selection.parse(domain), default_split=split)[0].image


def _tables(report: "Report") -> Iterator[Table | str]:
    """Yield a table for each label space that targets are scored in."""
    from pinmem_core.label_space import CITYSCAPES

    for space, part in report.parts.items():
        yield _scores(part, "IoU %" if space == CITYSCAPES else f"IoU %, {space.name}")
        yield ""


def _scores(report: "Report", title: str) -> Table:
    """Return the table of all targets; the last columns are means of the unseen and the seen."""
    from pinmem_core.checkpoints.model_card import seen_in_words

    scores = report.scores
    words = [seen_in_words(seen) for seen in report.seen.values()]
    heads = [f"{name}\n({word})" for name, word in zip(scores, words, strict=True)]
    means = {word: of for word, of in report.averages.items() if words.count(word) > 1}
    rows = table(title, *heads, *(f"mean\n({word})" for word in means))
    for name in next(iter(scores.values())).iou:
        rows.add_row(name, *(percent(of.iou[name]) for of in scores.values()))
    rows.add_section()
    domains = report.domains.values()
    for class_set in next(iter(scores.values())).miou_by_set:
        mious = [of.miou_by_set[class_set] for of in scores.values()]
        headline = class_set == "occurring"
        name = "mIoU" if headline else f"mIoU-{class_set}"
        rows.add_row(name, *map(percent, [*mious, *(of[class_set] for of in means.values())]))
        if headline:
            rows.add_row("  95 % interval", *(_interval(domain.interval) for domain in domains))
    rows.add_row("pixel accuracy", *(percent(of.pixel_accuracy) for of in scores.values()))
    rows.add_row("ECE", *(percent(domain.calibration.ece) for domain in domains))
    rows.add_row("images", *(f"{of.images:,}" for of in scores.values()))
    rows.add_row("split", *report.splits.values())
    return rows


def _memory_tables(report: "Report") -> Iterator[Table | str]:
    """Yield a table of the use of the memory, if it was measured."""
    uses = {name: of.memory for name, of in report.domains.items() if of.memory}
    if not uses:
        return
    rows = table("use of the memory", *uses)
    shares = {
        "what is read, R² on the query": "r2",
        "entropy of the attention / ln K": "entropy",
        "slots ever written %": "coverage",
        "size of the gate": "gate",
    }
    for title, key in shares.items():
        exact = [of[key] for of in uses.values()]
        shown = ("-" if v is None else percent(v) if "%" in title else f"{v:.4f}" for v in exact)
        rows.add_row(title, *shown)
    rows.add_section()
    rows.add_row("mIoU", *(percent(of["miou"]) for of in uses.values()))
    rows.add_row("mIoU, reading the mean", *(percent(of["miou_of_mean"]) for of in uses.values()))
    rows.add_row("what the mean costs", *(points(of["cost"]) for of in uses.values()))
    ends = (f"{points(of['low'])}..{points(of['high'])}" for of in uses.values())
    rows.add_row("  95 % interval", *ends)
    rows.add_row("used", *("yes" if of["used"] else "no" for of in uses.values()))
    yield rows
    yield ""


def _interval(ends: tuple[float, float]) -> str:
    return f"{percent(ends[0])}..{percent(ends[1])}"


COMPARE_EXAMPLES = (
    "pinmem eval compare RUN OTHER-RUN",
    "pinmem eval compare RUN OTHER-RUN --html compare.html",
    "pinmem eval compare first/report.json second/report.json --json",
)


def compare(
    reports: Annotated[
        list[str],
        argument(
            "Two or more: report files or folders, or runs, which stand for their newest report.",
            complete=runs,
        ),
    ],
    html: Annotated[
        Path | None,
        option("Also write the comparison as an HTML page.", metavar="FILE", panel="Output"),
    ] = None,
    json: Json = False,
) -> None:
    """Compare reports with the first one, with intervals of the differences."""
    from pinmem_core.evaluation.compare import SavedReport, find_report
    from pinmem_core.evaluation.compare import compare as compare_reports
    from pinmem_core.files import write_atomic

    comparison = compare_reports([SavedReport.read(find_report(name)) for name in reports])
    output = Output(as_json=json)
    data, shown = comparison.as_json(), [*_shown(comparison)]
    if html:
        write_atomic(html, comparison.as_html().encode())
        data["html"] = str(html)
        shown.append(f"page: {html}")
    output.result(data, *shown)
    output.next_step("pinmem runs")


def _shown(comparison: "Comparison") -> Iterator[str | Table]:
    reports, protocol = comparison.reports, comparison.reports[0].protocol
    heads = comparison.heads
    for target, scores in comparison.targets.items():
        yield _target(target, heads, scores)
        yield ""
    for seen, average in comparison.averages.items():
        yield _averages(f"mean of the {seen} targets", heads, average)
        yield ""
    yield f"protocol: {protocol['name']}: {protocol['description']}"
    for head, report in zip(heads, reports, strict=True):
        of = report.unfinished
        done = (of["iteration"], of["iterations"]) if of else None
        yield f"{head}, {report.precision}, {report.path}{_progress(done)}"


def _target(target: str, heads: list[str], scores: Sequence["TargetScores"]) -> Table:
    """Return the table of one target, with differences to the first report."""
    from pinmem_core.checkpoints.model_card import seen_in_words

    first, others = scores[0], scores[1:]
    space = "" if first.label_space == "cityscapes-19" else f", {first.label_space}"
    marked = (f"{head} ({seen_in_words(of.seen)})" for head, of in zip(heads, scores, strict=True))
    rows = table(f"{target}, IoU %{space}", *marked)
    for name, iou in first.iou.items():
        changed = (
            f"{percent(of.iou[name])} {points(of.class_differences[name]):>6}" for of in others
        )
        rows.add_row(name, percent(iou), *changed)
    rows.add_section()
    mious = (f"{percent(of.miou)} {points(of.difference):>6}" for of in others)
    rows.add_row("mIoU", percent(first.miou), *mious)
    intervals = (f"{points(low)}..{points(high)}" for low, high in (c.interval for c in others))
    rows.add_row("  95 % interval", "", *intervals)
    return rows


def _averages(title: str, heads: list[str], average: Sequence[float]) -> Table:
    rows = table(title, *heads)
    changed = (f"{percent(miou)} {points(miou - average[0]):>6}" for miou in average[1:])
    rows.add_row("mIoU", percent(average[0]), *changed)
    return rows
