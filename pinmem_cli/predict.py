"""`pinmem predict`: images and videos in, masks out."""

import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
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
    with_flag,
)
from pinmem_cli.output import INTERRUPTED, Output, say
from pinmem_core.errors import ConfigError, MachineError
from pinmem_core.events import Listener

if TYPE_CHECKING:
    from pinmem_core.inference import TiledPredictor
    from pinmem_core.inference.jobs import PredictionSummary
    from pinmem_core.inference.outputs import Job, Predicted
    from pinmem_core.inference.sources import Source

EXAMPLES = (
    "pinmem predict street.jpg",
    "pinmem predict photos/ 'drives/**/*.png' -o masks/ --format overlay --format trainid",
    "pinmem predict photos/ -o masks/ --skip-existing",
    "pinmem predict --watch inbox/ -o masks/ --model last",
    "pinmem predict drive.mp4 -o overlay.mp4 --format overlay --legend",
    "pinmem predict camera:0 --model RUN/export/model.onnx",
    "pinmem predict - -o - < street.jpg > mask.png",
)

_OF_STREAMS = (
    "--output",
    "--model",
    "--format",
    "--legend",
    "--protocol",
    "--precision",
    "--compile",
    "--device",
)


def predict(
    context: typer.Context,
    inputs: Annotated[
        list[str],
        argument(
            "Images, videos, folders, quoted patterns, http(s) addresses, camera:0, or - for "
            "standard input."
        ),
    ],
    out: Annotated[
        Path | None,
        option(
            "File for one input, folder for several, or - for standard output. Default: next to "
            "the input, e.g. photos-masks or street-mask.png.",
            "--output",
            "-o",
            panel="Output",
        ),
    ] = None,
    model: Annotated[
        str | None,
        option(
            "Run (folder or name), checkpoint folder, ONNX file, user/name@revision, last (newest "
            "finished run), or starter (default; comes with pinmem).",
            complete=models,
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        option(
            "{formats} (default: color).",
            "--format",
            metavar="FORMAT,...",
            panel="Output",
            complete=known_formats,
        ),
    ] = None,
    legend: Annotated[
        bool,
        option("Draw a legend of the classes below coloured pictures.", "--legend", panel="Output"),
    ] = False,
    frames: Annotated[
        bool, option("Write a video as a folder of frames.", "--frames", panel="Output")
    ] = False,
    watch: Annotated[
        bool,
        option("Keep predicting the images that appear in one folder, until Ctrl-C.", "--watch"),
    ] = False,
    skip_existing: Annotated[
        bool,
        option(
            "Leave existing outputs as they are, and predict the rest.",
            "--skip-existing",
            panel="Output",
        ),
    ] = False,
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
    from pinmem_core.inference.outputs import default_output, plan
    from pinmem_core.inference.protocols import get_protocol
    from pinmem_core.inference.sources import IMAGE_SUFFIXES, STANDARD, find_sources
    from pinmem_core.inference.writers import FORMATS, check_formats

    output = Output(as_json=json, quiet=quiet)
    streams = out == STANDARD
    if streams:
        _check_stream(context, json)
    if protocol is not None and get_protocol(protocol).view != "native":
        message = f"'{protocol}' says which part of an image is scored: it is for evaluation."
        raise ConfigError(message, "Choose another, such as paper-train.")
    chosen = check_formats(names(formats) or ["color"])
    if legend and not any(FORMATS[name].colored for name in chosen):
        raise ConfigError("--legend explains colours; no format shows any.", "Leave out --legend.")
    if all(Path(text).suffix.lower() in IMAGE_SUFFIXES for text in inputs):
        _check_frames(frames, ())
    _check_contradictions(watch=watch, skip_existing=skip_existing, force=force)
    place = out or default_output(inputs, chosen[0], frames=frames)
    how = {"frames": frames, "force": force, "legend": legend}
    network = _Network(model, output, protocol, precision, device, compile=compile)
    if watch:
        _watch(inputs, place, chosen, how, network)
        return
    jobs: list[Job] = []
    try:
        with output.listening() as listener:
            sources = find_sources(
                inputs, out=None if streams else place, stdin=sys.stdin.buffer, on_event=listener
            )
            _check_frames(frames, sources)
            if streams:
                _stream(sources, chosen, legend, network, listener)
                return
            jobs = plan(sources, place, chosen, skip_existing=skip_existing, **how)
            summary = _predict(network, jobs, listener)
    except KeyboardInterrupt:
        again = None if force or "-" in inputs else with_flag("predict", "--skip-existing")
        _show_interruption(jobs, again)
        raise typer.Exit(INTERRUPTED) from None
    _show(summary, network.setting | {"skipped": len(sources) - len(jobs)}, output)
    if summary.failed:
        raise typer.Exit(1 if summary.outputs else 3)
    output.next_step(network.next_step)


class _Network:
    """The model of a command; loading it, and torch with it, waits until the inputs are checked."""

    def __init__(
        self,
        model: str | None,
        output: Output,
        protocol: str | None,
        precision: Any,
        device: str,
        *,
        compile: bool,
    ) -> None:
        self.model = model
        self.output = output
        self.setting = {"model": model or "starter", "protocol": protocol, "precision": precision}
        self._options = {"precision": precision, "device": device, "compile": compile}

    def load(self, listener: Listener) -> "TiledPredictor":
        """Say which model predicts, and load it."""
        from pinmem_core.checkpoints.hub import (
            LAST,
            STARTER,
            STARTER_FOLDER,
            checkpoint_of,
            model_summary,
            onnx_file,
        )

        name = self.model or STARTER
        if file := onnx_file(name):
            path, summary = file, "an ONNX file"
        else:
            path = checkpoint_of(name, on_event=listener) if self.model else STARTER_FOLDER
            summary = model_summary(path)
        if name == LAST:
            self.setting["model"] = str(path)
        self.output.note(f"model: {name}, {summary}")

        from pinmem_core.inference import load
        from pinmem_core.inference.protocols import get_protocol, name_of

        protocol = self.setting["protocol"]
        chosen = get_protocol(protocol) if protocol else None
        predictor = load(str(path), protocol=chosen, on_event=listener, **self._options)
        self.setting["protocol"] = protocol or name_of(predictor.protocol)
        return predictor

    @property
    def next_step(self) -> str:
        """Command that usually comes next."""
        if self.model is None or self.model == "starter":
            return "pinmem train --recipe demo"
        if self.model.lower().endswith(".onnx"):
            return "pinmem predict --help"
        return f"pinmem eval {shell_join(self.model)}"


def _show_interruption(jobs: Sequence["Job"], again: str | None) -> None:
    """Print how many inputs are done, and the command that predicts the others."""
    done = sum(all(output.exists() for output in job.outputs) for job in jobs)
    if not done or not again:
        say("interrupted.")
        return
    say(f"interrupted: {done} of {len(jobs)} inputs are done.")
    say(f"Continue with: {again}")


def _predict(network: _Network, jobs: Sequence["Job"], listener: Listener) -> "PredictionSummary":
    from pinmem_core.inference.jobs import PredictionSummary, predict_files
    from pinmem_core.inference.video import require_pyav

    if not jobs:
        return PredictionSummary((), (), 0, 0.0)
    if any(job.source.is_video for job in jobs):
        require_pyav()
    return predict_files(network.load(listener), jobs, on_event=listener)


def _stream(
    sources: Sequence["Source"],
    formats: Sequence[str],
    legend: bool,
    network: _Network,
    listener: Listener,
) -> None:
    """Write one mask to standard output."""
    from pinmem_core.inference.jobs import predict_bytes
    from pinmem_core.inference.outputs import plan_stream

    source, output = plan_stream(sources, formats, legend=legend)
    mask = predict_bytes(network.load(listener), source, output, on_event=listener)
    sys.stdout.buffer.write(mask)


def _watch(
    inputs: Sequence[str],
    out: Path,
    formats: Sequence[str],
    how: dict[str, bool],
    network: _Network,
) -> None:
    """Predict the images that appear in a folder until Ctrl-C."""
    from pinmem_core.inference.jobs import Failed, PredictionSummary, predict_each
    from pinmem_core.inference.outputs import plan
    from pinmem_core.inference.watch import watch_folder

    if len(inputs) != 1 or not Path(inputs[0]).expanduser().is_dir():
        raise ConfigError("--watch needs one folder that exists.", "Name it, without a pattern.")
    folder, output = Path(inputs[0]).expanduser(), network.output
    outputs: list[Predicted] = []
    failed: dict[Path | str, Failed] = {}
    images, began = 0, perf_counter()
    try:
        with output.listening() as listener:
            predictor = network.load(listener)
            output.note(f"watching {folder}; outputs go to {out}; Ctrl-C ends it")
            for sources, new in watch_folder(folder, out):
                if not new:
                    continue
                jobs = plan(sources, out, formats, skip_existing=not how["force"], **how)
                fresh = [job for job in jobs if job.source.path in new]
                for result in predict_each(predictor, fresh, on_event=listener):
                    if isinstance(result, Failed):
                        failed[result.input] = result
                        say(f"failed: {result.reason}")
                        continue
                    failed.pop(result[0].input, None)
                    outputs += result
                    images += result[0].frames
                    if not output.as_json:
                        output.result({}, *map(_line, result))
                        sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    summary = PredictionSummary(
        tuple(outputs), tuple(failed.values()), images, perf_counter() - began
    )
    if output.as_json:
        output.result(_as_json(summary) | network.setting)
    output.note(f"stopped: {_counted(summary)}")
    raise typer.Exit(INTERRUPTED)


def _check_frames(frames: bool, sources: Sequence["Source"]) -> None:
    if frames and not any(source.is_video for source in sources):
        raise ConfigError("--frames is for videos; none is named.", "Leave out --frames.")


def _check_contradictions(*, watch: bool, skip_existing: bool, force: bool) -> None:
    if skip_existing and (force or watch):
        other = "--force contradicts" if force else "--watch implies"
        raise ConfigError(f"{other} --skip-existing.", "Leave out --skip-existing.")


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
    output.result(_as_json(summary) | setting, *map(_line, summary.outputs))
    speed = summary.images_per_second
    digits = ".1f" if speed >= 1 else ".2g"  # a panorama takes minutes
    skipped = f", {setting['skipped']} skipped" if setting["skipped"] else ""
    rate = f" in {summary.seconds:.1f} s ({speed:{digits}} images/s)" if summary.images else ""
    output.note(f"{_counted(summary, rate)}{skipped}")


def _line(done: "Predicted") -> str:
    return f"{done.output}  {done.width}x{done.height}"


def _counted(summary: "PredictionSummary", rate: str = "") -> str:
    what = "image" if summary.images == 1 else "images"
    failed = f", {len(summary.failed)} failed" if summary.failed else ""
    return f"{summary.images} {what}{rate}{failed}"


def _as_json(summary: "PredictionSummary") -> dict[str, Any]:
    return {
        "outputs": [
            {**vars(done), "input": str(done.input), "output": str(done.output)}
            for done in summary.outputs
        ],
        "failed": [{"input": str(f.input), "reason": f.reason} for f in summary.failed],
        "images": summary.images,
        "seconds": round(summary.seconds, 3),
        "images_per_second": round(summary.images_per_second, 6),
    }
