"""`pinmem eval`: a run and targets in, scores out."""

from typing import Annotated

import typer

from pinmem_cli.options import Device, Json, Quiet, examples, names
from pinmem_cli.output import Output, table
from pinmem_cli.train import score_json

EXAMPLES = examples(
    "pinmem eval RUN --targets camvid:0001TP,demo:dusk",
    "pinmem eval RUN --protocol paper-eval --json",
)


def evaluate(
    run: Annotated[str, typer.Argument(help="A run's folder or name, or a checkpoint folder.")],
    targets: Annotated[
        str | None, typer.Option(help="Domains to score on, by comma; default: the run's targets.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="paper-train, paper-eval or paper-pool.")
    ] = "paper-train",
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a trained model on domains."""
    from pinmem_core.evaluation import evaluate_run
    from pinmem_core.labels import CLASS_NAMES

    output = Output(as_json=json, quiet=quiet)
    with output.listening() as listener:
        report = evaluate_run(
            run, names(targets), protocol=protocol, device=device, on_event=listener
        )
    rows = table("IoU %", *report.scores)
    for name in CLASS_NAMES:
        found = [scores.iou[name] for scores in report.scores.values()]
        rows.add_row(name, *("-" if iou is None else f"{100 * iou:.1f}" for iou in found))
    rows.add_row("mean", *(f"{100 * scores.miou:.1f}" for scores in report.scores.values()))
    output.result(
        {
            "targets": {
                name: {**score_json(scores), "split": report.splits[name]}
                for name, scores in report.scores.items()
            },
            "protocol": report.protocol,
            "checkpoint": str(report.checkpoint),
        },
        rows,
        "",
        *(f"{n}: split '{report.splits[n]}', {s.images} images" for n, s in report.scores.items()),
        f"protocol: {report.protocol}",
        f"checkpoint: {report.checkpoint}",
    )
    output.next_step(f"pinmem predict IMAGE -o mask.png --model {run}")
