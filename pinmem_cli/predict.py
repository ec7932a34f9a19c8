"""`pinmem predict`: images in, masks out."""

from pathlib import Path
from typing import Annotated

import typer

from pinmem_cli.options import Device, Json, Quiet, examples
from pinmem_cli.output import Output

EXAMPLES = examples(
    "pinmem predict street.jpg -o mask.png",
    "pinmem predict *.jpg -o masks/ --format overlay --model RUN",
)


def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    out: Annotated[
        Path, typer.Option("--output", "-o", help="A PNG for one image; else a folder.")
    ],
    model: Annotated[
        str | None, typer.Option(help="A run or checkpoint; default: the newest run.")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="color, trainid, labelid or overlay.")
    ] = "color",
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Segment images with a trained model."""
    from pinmem_core.home import newest_run
    from pinmem_core.inference.files import output_paths, predict_files
    from pinmem_core.inference.painters import get_painter

    output = Output(as_json=json, quiet=quiet)
    painter = get_painter(form)
    jobs = output_paths(images, out)
    if model is None:
        model = str(newest_run())
        output.note(f"model: {model} (the newest run)")

    from pinmem_core.inference import load

    predictor = load(model, device=device)
    with output.listening() as listener:
        outcome = predict_files(predictor, jobs, painter, on_event=listener)
    for failure in outcome.failed:
        output.note(f"failed: {failure.reason}")
    output.result(
        {
            "outputs": [
                {
                    "input": str(done.input),
                    "output": str(done.output),
                    "width": done.width,
                    "height": done.height,
                }
                for done in outcome.outputs
            ],
            "failed": [{"input": str(f.input), "reason": f.reason} for f in outcome.failed],
        },
        *(f"{done.output}  {done.width}x{done.height}" for done in outcome.outputs),
    )
    if outcome.failed:
        raise typer.Exit(1 if outcome.outputs else 3)
