"""`pinmem eval`: a run and targets in, scores and a report out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pinmem_cli.options import Compile, Device, Json, Precision, Quiet, examples, names, quoted
from pinmem_cli.output import Output, table

if TYPE_CHECKING:
    from pinmem_core.evaluation import Report

EXAMPLES = examples(
    "pinmem eval RUN --targets camvid:0001TP,demo:dusk",
    "pinmem eval RUN --protocol paper-eval --json",
    "pinmem eval compare RUN OTHER-RUN",
)


def evaluate(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's folder or name, a checkpoint folder, last, starter or user/name@revision."
        ),
    ],
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help="Domains to score on; by comma, or repeated; default: the run's targets."
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="paper-train, paper-mapillary, paper-eval, paper-pool, fast or photo, or one with "
            "changes: paper-train+flip+scales=0.5,1; default: the model's own (photo for the "
            "starter model), else paper-train."
        ),
    ] = None,
    precision: Precision = "float32",
    compile: Compile = False,
    device: Device = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder to make for the report; default: RUN/eval/<protocol>-<time>.",
            rich_help_panel="Output",
        ),
    ] = None,
    no_pictures: Annotated[
        bool,
        typer.Option(
            "--no-pictures",
            help="Leave images and the memory's pictures out of the report, which takes less time.",
            rich_help_panel="Output",
        ),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a trained model on domains, and write a report.

    'pinmem eval compare' sets reports side by side.
    """
    from pinmem_core.checkpoints.checkpoint import read_config
    from pinmem_core.checkpoints.hub import checkpoint_of
    from pinmem_core.evaluation.report import PAGE, PROTOCOL, evaluate_run, report_folder
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
        folder = output or report_folder(checkpoint, protocol)
        report = evaluate_run(
            str(checkpoint),
            names(targets),
            protocol=protocol,
            precision=precision,
            compile=compile,
            device=device,
            output=folder,
            pictures=not no_pictures,
            on_event=listener,
        )
    data = report.as_json()
    for target in data["targets"].values():
        for key in ("counts", "missed", "per_image"):  # thousands of lines
            del target[key]
    data |= {"protocol": report.protocol, "checkpoint": str(report.checkpoint)}
    out.result(
        data | {"report": str(folder)},
        _scores(report),
        "",
        f"protocol: {report.protocol}, {precision}",
        f"checkpoint: {report.checkpoint}",
        f"report: {folder / PAGE}",
    )
    out.next_step(f"pinmem predict IMAGE -o mask.png --model {quoted(run)}")


def _scores(report: "Report") -> Table:
    """Return the table of all targets; the last columns are means of the unseen and the seen."""
    from pinmem_core.checkpoints.model_card import seen_in_words

    scores = report.scores
    words = [seen_in_words(seen) for seen in report.seen.values()]
    heads = [f"{name}\n({word})" for name, word in zip(scores, words, strict=True)]
    means = {word: of for word, of in report.averages.items() if words.count(word) > 1}
    rows = table("IoU %", *heads, *(f"mean\n({word})" for word in means))
    for name in next(iter(scores.values())).iou:
        rows.add_row(name, *(_percent(of.iou[name]) for of in scores.values()))
    rows.add_section()
    domains = report.domains.values()
    for class_set in next(iter(scores.values())).miou_by_set:
        mious = [of.miou_by_set[class_set] for of in scores.values()]
        headline = class_set == "occurring"
        name = "mIoU" if headline else f"mIoU-{class_set}"
        rows.add_row(name, *map(_percent, [*mious, *(of[class_set] for of in means.values())]))
        if headline:
            rows.add_row("  95 % interval", *(_interval(domain.interval) for domain in domains))
    rows.add_row("pixel accuracy", *(_percent(of.pixel_accuracy) for of in scores.values()))
    rows.add_row("ECE", *(_percent(domain.result.calibration.ece) for domain in domains))
    rows.add_row("images", *(f"{of.images:,}" for of in scores.values()))
    rows.add_row("split", *report.splits.values())
    return rows


def _interval(ends: tuple[float, float]) -> str:
    return f"{_percent(ends[0])}..{_percent(ends[1])}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
