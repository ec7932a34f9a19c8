"""`pinmem predict`: images and videos in, masks out."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pinmem_cli.options import (
    Compile,
    Device,
    Json,
    Precision,
    Quiet,
    examples,
    names,
    refuse_others,
)
from pinmem_cli.output import Output, say
from pinmem_core.errors import ConfigError, MachineError

if TYPE_CHECKING:
    from pinmem_core.inference.jobs import PredictionSummary

EXAMPLES = examples(
    "pinmem predict street.jpg -o mask.png",
    "pinmem predict photos/ 'drives/**/*.png' -o masks/ --format overlay --format trainid",
    "pinmem predict drive.mp4 -o overlay.mp4 --format overlay",
    "pinmem predict - -o - < street.jpg > mask.png",
)

_OF_STREAMS = (
    "--output",
    "--model",
    "--format",
    "--protocol",
    "--precision",
    "--compile",
    "--device",
)


def predict(
    context: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(help="Images, videos, folders, quoted patterns, or - for standard input."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="A file for one input; else a folder; - for standard output."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="A run, a checkpoint, user/name@revision, last for the newest finished run, or "
            "starter for the model that comes with pinmem, which is the default."
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="color (the default), trainid, labelid, overlay, beside, confidence, entropy or "
            "probabilities; by comma, or repeated.",
        ),
    ] = None,
    frames: Annotated[
        bool, typer.Option("--frames", help="Make of a video a folder of pictures, not a video.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="fast, photo, paper-train, paper-eval or paper-pool, or one with changes: "
            "fast+flip+scales=0.5,1; default: the model's own (photo for the starter model), else "
            "fast."
        ),
    ] = None,
    precision: Precision = "float32",
    compile: Compile = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Segment images and videos with a trained model."""
    from pinmem_core.checkpoints.checkpoint import read_config
    from pinmem_core.checkpoints.hub import (
        LAST,
        STARTER,
        STARTER_FOLDER,
        checkpoint_of,
        starter_summary,
    )
    from pinmem_core.inference import get_protocol, load, protocol_of
    from pinmem_core.inference.jobs import predict_bytes, predict_files
    from pinmem_core.inference.sources import STANDARD, find_sources
    from pinmem_core.inference.writers import get_formats, plan, plan_stream

    output = Output(as_json=json, quiet=quiet)
    streams = out == STANDARD
    if streams:
        _check_stream(context, json)
    if protocol is not None and get_protocol(protocol).view != "native":
        message = f"'{protocol}' says which part of an image is scored: it is for 'pinmem eval'."
        raise ConfigError(message, "Choose another, such as paper-train.")
    forms = get_formats(names(formats) or ["color"])
    with output.listening() as tell:
        sources = find_sources(
            inputs, out=None if streams else out, stdin=sys.stdin.buffer, on_event=tell
        )
        if frames and not any(source.is_video for source in sources):
            raise ConfigError("--frames is for videos; none is named.", "Leave out --frames.")
        if streams:
            source, form = plan_stream(sources, forms)
        else:
            jobs = plan(sources, out, forms, frames=frames, force=force)
        if model is None:
            output.note(f"model: {STARTER}, {starter_summary()}")
            checkpoint = STARTER_FOLDER
        else:
            checkpoint = checkpoint_of(model, on_event=tell)
        if protocol is None:
            protocol = protocol_of(read_config(checkpoint), "fast")
        predictor = load(
            str(checkpoint),
            device=device,
            protocol=get_protocol(protocol),
            precision=precision,
            compile=compile,
            on_event=tell,
        )
        if streams:
            sys.stdout.buffer.write(predict_bytes(predictor, source, form, on_event=tell))
            return
        outcome = predict_files(predictor, jobs, on_event=tell)
    name = str(checkpoint) if model == LAST else model or STARTER
    _tell(outcome, {"model": name, "protocol": protocol, "precision": precision}, output)


def _check_stream(context: typer.Context, json: bool) -> None:
    """Refuse what does not go with a mask on standard output."""
    if json:
        raise ConfigError("--json and '-o -' both want standard output.", "Leave one of them out.")
    if sys.__stdout__ is None:
        raise MachineError("standard output is closed.", "Name a file with -o.")
    refuse_others(context, "'-o -'", "writes one mask to standard output", _OF_STREAMS)


def _tell(outcome: "PredictionSummary", setting: dict[str, Any], output: Output) -> None:
    for failure in outcome.failed:
        say(f"failed: {failure.reason}")
    output.result(
        {
            "outputs": [
                {**vars(done), "input": str(done.input), "output": str(done.output)}
                for done in outcome.outputs
            ],
            "failed": [{"input": str(f.input), "reason": f.reason} for f in outcome.failed],
            "images": outcome.images,
            "seconds": round(outcome.seconds, 3),
            "images_per_second": round(outcome.images_per_second, 6),
            **setting,
        },
        *(f"{done.output}  {done.width}x{done.height}" for done in outcome.outputs),
    )
    speed = outcome.images_per_second
    digits = ".1f" if speed >= 1 else ".2g"  # a panorama takes minutes
    what = "image" if outcome.images == 1 else "images"
    failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
    output.note(
        f"{outcome.images} {what} in {outcome.seconds:.1f} s ({speed:{digits}} images/s){failed}"
    )
    if outcome.failed:
        raise typer.Exit(1 if outcome.outputs else 3)
