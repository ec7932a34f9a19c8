"""`pinmem export`: write a model for other runtimes, share it, or convert an original file."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pinmem_cli.names import models
from pinmem_cli.options import (
    Force,
    Group,
    Json,
    Quiet,
    add,
    argument,
    group,
    option,
    paths,
    shell_join,
)
from pinmem_cli.output import Output, fields, size
from pinmem_core.errors import ConfigError

if TYPE_CHECKING:
    from pinmem_core.export.check import ExportedFile

_HEAD = 12
"""Lines of the model card that a dry run shows."""

Model = Annotated[
    str,
    argument(
        "Run (folder or name), checkpoint folder, starter, last, or user/name@revision.",
        complete=models,
    ),
]
File = Annotated[
    Path | None,
    option(
        "Output file (.onnx, .pt2) or folder; default: RUN/export.",
        "--output",
        "-o",
        panel="Output",
    ),
]
Folder = Annotated[
    Path | None, option("Output folder; default: RUN/export.", "--output", "-o", panel="Output")
]
Size = Annotated[
    str | None,
    option("Fix the image size; by default, any size works.", "--size", metavar="WIDTHxHEIGHT"),
]
Preprocess = Annotated[
    bool, option("Take 8-bit RGB, and normalize it in the file.", "--preprocess")
]
Argmax = Annotated[bool, option("Return trainIds instead of logits.", "--argmax")]


class _ExportGroup(Group):
    """Name the new command to those who use the options of older versions."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse `pinmem export RUN --to FORMAT` and the like."""
        if args and args[0] not in self.commands:
            _refuse_old_form(args)
        return super().parse_args(ctx, args)


def _refuse_old_form(args: Sequence[str]) -> None:
    words = [word for arg in args for word in (arg.split("=", 1) if arg[:2] == "--" else [arg])]
    forms = {"onnx": "onnx", "torch-export": "torch", "safetensors": "weights"}
    for word, value in zip(words, [*words[1:], ""], strict=True):
        model = "RUN" if words[0].startswith("-") else words[0]
        new = {
            "--to": (forms.get(value, "onnx"), model),
            "--format": (forms.get(value, "onnx"), model),
            "--push": ("push", model, value),
            "--from-official": ("convert", value),
        }
        if word in new:
            command = shell_join("pinmem", "export", *filter(None, new[word]))
            raise ConfigError(
                f"'{word}' is a command of its own now: {command}.",
                f"See its options: pinmem export {new[word][0]} --help",
            )


app = group(
    "Export a model to other runtimes, share it, or convert an original file.", _ExportGroup
)


def onnx(
    model: Model,
    output: File = None,
    precision: Annotated[
        Literal["float32", "fp16", "int8"],
        option("Precision of the convolutions; int8 is written next to float32."),
    ] = "float32",
    image_size: Size = None,
    preprocess: Preprocess = False,
    argmax: Argmax = False,
    opset: Annotated[int | None, option("Opset version; default: 18.")] = None,
    calibrate: Annotated[
        list[Path] | None,
        option(
            "Calibration images, folders or quoted patterns; default: images of the sources.",
            metavar="IMAGES,...",
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write an ONNX file and check it against the network."""
    if calibrate and precision != "int8":
        raise ConfigError("--calibrate does nothing without --precision int8.", "Leave it out.")
    _graph(
        Output(as_json=json, quiet=quiet),
        model,
        "onnx",
        output,
        precision=precision,
        size=_parse_size(image_size),
        preprocess=preprocess,
        argmax=argmax,
        opset=opset,
        calibrate=[str(path) for path in paths(calibrate)],
        force=force,
    )


def torch(
    model: Model,
    output: File = None,
    precision: Annotated[
        Literal["float32", "fp16"], option("Precision of the convolutions.")
    ] = "float32",
    image_size: Size = None,
    preprocess: Preprocess = False,
    argmax: Argmax = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a program that torch runs without pinmem (.pt2), and check it."""
    _graph(
        Output(as_json=json, quiet=quiet),
        model,
        "torch-export",
        output,
        precision=precision,
        size=_parse_size(image_size),
        preprocess=preprocess,
        argmax=argmax,
        force=force,
    )


def _graph(
    out: Output,
    model: str,
    form: Literal["onnx", "torch-export"],
    output: Path | None,
    **options: Any,
) -> None:
    from pinmem_core.export.files import export_graph

    with out.listening() as listener:
        files = export_graph(model, form, output, on_event=listener, **options)
    _show_files(out, model, files)
    out.next_step(f"pinmem export push {shell_join(model)} user/name --dry-run")


def weights(
    model: Model,
    output: Folder = None,
    precision: Annotated[
        Literal["float32", "fp16"], option("Precision of the stored convolutions.")
    ] = "float32",
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a checkpoint to share: weights, configuration and model card."""
    from pinmem_core.export.files import export_weights

    out = Output(as_json=json, quiet=quiet)
    with out.listening() as listener:
        half = precision == "fp16"
        files = export_weights(model, output, half=half, force=force, on_event=listener)
    _show_files(out, model, files)
    out.next_step(f"pinmem export push {shell_join(files[0].path.parent)} user/name --dry-run")


def _show_files(out: Output, model: str, files: Sequence["ExportedFile"]) -> None:
    entries = [
        {"path": str(f.path), "bytes": f.bytes, "compared": [vars(one) for one in f.compared]}
        for f in files
    ]
    lines = (f"{file.path}  {size(file.bytes)}" for file in files)
    out.result({"model": model, "files": entries}, *lines)
    for file in files:
        if file.agreement:
            out.note(f"{file.path.name}: {file.agreement}")


def _parse_size(text: str | None) -> tuple[int, int] | None:
    """Return (height, width) of a text WIDTHxHEIGHT."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text.lower())
    if match is None:
        raise ConfigError(
            f"'--size {text}' is not of the form WIDTHxHEIGHT.", "For example: 1024x512."
        )
    return int(match[2]), int(match[1])


def push(
    model: Model,
    repo: Annotated[str, argument("Repository on the Hugging Face Hub.", metavar="USER/NAME")],
    private: Annotated[bool, option("Create a private repository.", "--private")] = False,
    revision: Annotated[str | None, option("Branch; created if it is missing.")] = None,
    dry_run: Annotated[
        bool, option("Show what would be sent, without the network.", "--dry-run")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Send a checkpoint with its card and report to the Hugging Face Hub."""
    from pinmem_core.export.push import plan_upload, upload

    out = Output(as_json=json, quiet=quiet)
    with out.listening() as listener:
        plan = plan_upload(model, repo, revision=revision, private=private, on_event=listener)
        url = None if dry_run else upload(plan, on_event=listener)
    name, branch = plan.name, plan.name.revision
    data = {
        "repository": name.repo,
        "revision": branch,
        "private": private,
        "dry_run": dry_run,
        "files": plan.sizes,
        "commit": url,
    }
    where = name.repo + (f", branch {branch}" if branch else "") + ", private" * private
    rows = fields([(path, size(count)) for path, count in plan.sizes.items()])
    if dry_run:
        card = ["", *plan.card.splitlines()[:_HEAD], "..."]
        out.result(data, f"{where} (nothing was sent)", rows, *card)
        options = ["--revision", revision] * bool(revision) + ["--private"] * private
        out.next_step(f"pinmem export push {shell_join(model, repo, *options)}")
    else:
        out.result(data, where, rows)
        out.note(f"commit: {url}")
        out.next_step(f"pinmem eval {name}")


def convert(
    file: Annotated[Path, argument("File of the original, or of its family.", metavar="FILE.pth")],
    output: Annotated[Path, option("Output folder.", "--output", "-o", panel="Output")],
    allow_missing_memory: Annotated[
        bool, option("Accept a file that lacks its memory.", "--allow-missing-memory")
    ] = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a .pth file of the paper (or RobustNet's, or plain DeepLabV3+) to a checkpoint."""
    from pinmem_core.checkpoints.checkpoint import write_checkpoint
    from pinmem_core.export.files import CHECKPOINT_FILES, prepare_folder
    from pinmem_core.export.official import convert_official

    out = Output(as_json=json, quiet=quiet)
    segmenter, about = convert_official(file, allow_missing_memory=allow_missing_memory)
    prepare_folder(output, CHECKPOINT_FILES, force=force)
    write_checkpoint(segmenter, output, about)
    network = segmenter.config
    out.result(
        {"checkpoint": str(output), "model": network.model_dump(mode="json"), **about},
        f"{output}: {network.backbone}, {network.decoder}, "
        f"{'with' if network.memory else 'no'} memory",
        *(f"assumed: {what}" for what in about["converted"]["assumed"]),
    )
    out.next_step(f"pinmem export onnx {shell_join(output)}")


add(
    app,
    "onnx",
    onnx,
    "pinmem export onnx RUN --preprocess --argmax",
    "pinmem export onnx RUN --precision int8 --calibrate photos/",
)
add(app, "torch", torch, "pinmem export torch RUN --precision fp16 -o exported/")
add(app, "weights", weights, "pinmem export weights user/name --precision fp16 -o small/")
add(
    app,
    "push",
    push,
    "pinmem export push RUN user/name --dry-run",
    "pinmem export push RUN user/name --private --revision v2",
)
add(app, "convert", convert, "pinmem export convert original.pth -o converted/")
