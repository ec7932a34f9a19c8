"""`pinmem predict`: images and videos in, masks out."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pinmem_cli.names import formats as known_formats
from pinmem_cli.names import models, protocols
from pinmem_cli.options import (
    Compile,
    Device,
    Force,
    Json,
    Precision,
    Quiet,
    argument,
    names,
    option,
    refuse_others,
    shell_join,
)
from pinmem_cli.output import Output, say
from pinmem_core.errors import ConfigError, MachineError
from pinmem_core.events import Listener

if TYPE_CHECKING:
    from pinmem_core.inference.jobs import PredictionSummary

EXAMPLES = (
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
        list[str], argument("Images, videos, folders, quoted patterns, or - for standard input.")
    ],
    out: Annotated[
        Path,
        option(
            "File for one input, folder for several, or - for standard output.", "--output", "-o"
        ),
    ],
    model: Annotated[
        str | None,
        option(
            "Run (folder or name), checkpoint folder, user/name@revision, last (newest finished "
            "run), or starter (default; comes with pinmem).",
            complete=models,
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        option(
            "{formats} (default: color).", "--format", metavar="FORMAT,...", complete=known_formats
        ),
    ] = None,
    frames: Annotated[bool, option("Write a video as a folder of frames.", "--frames")] = False,
    force: Force = False,
    protocol: Annotated[
        str | None,
        option(
            "{protocols}; or one with changes, e.g. fast+flip+scales=0.5,1. Default: the "
            "model's own, else fast.",
            complete=protocols,
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
    from pinmem_core.checkpoints.hub import LAST, STARTER
    from pinmem_core.inference import get_protocol, load, protocol_of
    from pinmem_core.inference.jobs import predict_bytes, predict_files
    from pinmem_core.inference.sources import STANDARD, find_sources
    from pinmem_core.inference.writers import check_formats, plan, plan_stream

    output = Output(as_json=json, quiet=quiet)
    streams = out == STANDARD
    if streams:
        _check_stream(context, json)
    if protocol is not None and get_protocol(protocol).view != "native":
        message = f"'{protocol}' says which part of an image is scored: it is for 'pinmem eval'."
        raise ConfigError(message, "Choose another, such as paper-train.")
    chosen = check_formats(names(formats) or ["color"])
    with output.listening() as listener:
        sources = find_sources(
            inputs, out=None if streams else out, stdin=sys.stdin.buffer, on_event=listener
        )
        if frames and not any(source.is_video for source in sources):
            raise ConfigError("--frames is for videos; none is named.", "Leave out --frames.")
        if streams:
            source, format = plan_stream(sources, chosen)
        else:
            jobs = plan(sources, out, chosen, frames=frames, force=force)
        checkpoint = _checkpoint(model, output, listener)
        if protocol is None:
            protocol = protocol_of(read_config(checkpoint), "fast")
        predictor = load(
            str(checkpoint),
            device=device,
            protocol=get_protocol(protocol),
            precision=precision,
            compile=compile,
            on_event=listener,
        )
        if streams:
            sys.stdout.buffer.write(predict_bytes(predictor, source, format, on_event=listener))
            return
        summary = predict_files(predictor, jobs, on_event=listener)
    name = str(checkpoint) if model == LAST else model or STARTER
    _show(summary, {"model": name, "protocol": protocol, "precision": precision}, output)
    own = model not in (None, STARTER)
    output.next_step(f"pinmem eval {shell_join(model)}" if own else "pinmem train --recipe demo")


def _checkpoint(model: str | None, output: Output, listener: Listener) -> Path:
    from pinmem_core.checkpoints.hub import STARTER, STARTER_FOLDER, checkpoint_of, starter_summary

    if model is not None:
        return checkpoint_of(model, on_event=listener)
    output.note(f"model: {STARTER}, {starter_summary()}")
    return STARTER_FOLDER


def _check_stream(context: typer.Context, json: bool) -> None:
    """Refuse what does not go with a mask on standard output."""
    if json:
        raise ConfigError("--json and '-o -' both want standard output.", "Leave one of them out.")
    if sys.__stdout__ is None:
        raise MachineError("standard output is closed.", "Name a file with -o.")
    refuse_others(context, "'-o -'", "writes one mask to standard output", _OF_STREAMS)


def _show(summary: "PredictionSummary", setting: dict[str, Any], output: Output) -> None:
    for failure in summary.failed:
        say(f"failed: {failure.reason}")
    output.result(
        {
            "outputs": [
                {**vars(done), "input": str(done.input), "output": str(done.output)}
                for done in summary.outputs
            ],
            "failed": [{"input": str(f.input), "reason": f.reason} for f in summary.failed],
            "images": summary.images,
            "seconds": round(summary.seconds, 3),
            "images_per_second": round(summary.images_per_second, 6),
            **setting,
        },
        *(f"{done.output}  {done.width}x{done.height}" for done in summary.outputs),
    )
    speed = summary.images_per_second
    digits = ".1f" if speed >= 1 else ".2g"  # a panorama takes minutes
    what = "image" if summary.images == 1 else "images"
    failed = f", {len(summary.failed)} failed" if summary.failed else ""
    output.note(
        f"{summary.images} {what} in {summary.seconds:.1f} s ({speed:{digits}} images/s){failed}"
    )
    if summary.failed:
        raise typer.Exit(1 if summary.outputs else 3)
