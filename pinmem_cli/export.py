"""`pinmem export`: push a model to the Hub, write it for other runtimes, or convert one."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pinmem_cli.options import Json, Quiet, examples, given_options, names, shell_join
from pinmem_cli.output import Output, fields, size
from pinmem_core.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from pinmem_core.export.files import Written
    from pinmem_core.export.push import Upload

EXAMPLES = examples(
    "pinmem export RUN --push user/name --dry-run",
    "pinmem export RUN --to onnx --preprocess --argmax",
    "pinmem export user/name --to safetensors --fp16 -o small/",
    "pinmem export --from-official original.pth -o converted/",
)
_PUSH, _TO, _FROM = "To the Hub", "To a file", "From the original"
_FORMS = ("onnx", "torch-export", "safetensors")
_ONNX, _GRAPHS = ("--to onnx",), ("--to onnx", "--to torch-export")
_FILES = (*_GRAPHS, "--to safetensors")
_GOES_WITH = {
    "--private": ("--push",),
    "--revision": ("--push",),
    "--dry-run": ("--push",),
    "--fp16": _FILES,
    "--size": _GRAPHS,
    "--preprocess": _GRAPHS,
    "--argmax": _GRAPHS,
    "--opset": _ONNX,
    "--int8": _ONNX,
    "--calibrate": ("--int8",),
    "--allow-missing-memory": ("--from-official",),
    "--output": (*_FILES, "--from-official"),
    "--force": (*_FILES, "--from-official"),
}
"""With which others an option does anything."""
_HEAD = 12
"""Lines of the card's head that a rehearsal shows."""


def export(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="A run's folder or name, a checkpoint folder, or user/name@revision."),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="USER/NAME", help="Send the checkpoint there.", rich_help_panel=_PUSH),
    ] = None,
    private: Annotated[
        bool,
        typer.Option("--private", help="For your eyes only.", rich_help_panel=_PUSH),
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(help="The branch; made where it is missing.", rich_help_panel=_PUSH),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show what would be sent; ask nobody.", rich_help_panel=_PUSH
        ),
    ] = False,
    to: Annotated[
        list[str] | None,
        typer.Option(
            help="onnx, torch-export or safetensors; by comma, or repeated.", rich_help_panel=_TO
        ),
    ] = None,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="In half precision.", rich_help_panel=_TO)
    ] = False,
    image_size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="WIDTHxHEIGHT",
            help="For images of this size only; default: any size.",
            rich_help_panel=_TO,
        ),
    ] = None,
    preprocess: Annotated[
        bool,
        typer.Option(
            "--preprocess", help="Take 8-bit RGB, and normalise it inside.", rich_help_panel=_TO
        ),
    ] = False,
    argmax: Annotated[
        bool,
        typer.Option("--argmax", help="Give trainIds instead of logits.", rich_help_panel=_TO),
    ] = False,
    opset: Annotated[
        int | None, typer.Option(help="onnx: version of its operators.", rich_help_panel=_TO)
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="onnx: also one in 8-bit integers.", rich_help_panel=_TO),
    ] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGES",
            help="int8: images, a folder or quoted pattern, that its ranges are set by.",
            rich_help_panel=_TO,
        ),
    ] = None,
    from_official: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.pth",
            help="Make a checkpoint of the original's file; RobustNet's and plain DeepLabV3+, too.",
            rich_help_panel=_FROM,
        ),
    ] = None,
    allow_missing_memory: Annotated[
        bool,
        typer.Option(
            "--allow-missing-memory",
            help="Accept a file that has lost its memory.",
            rich_help_panel=_FROM,
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder to write to; default for --to: RUN/export.",
            rich_help_panel="Output",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace files that exist.", rich_help_panel="Output"),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring a trained model to the Hub, or write it as a file; or take over the original's.

    Name one of --push, --to and --from-official.
    """
    forms = list(dict.fromkeys(names(to)))
    for form in forms:
        if form not in _FORMS:
            raise unknown_name("form", form, _FORMS)
    goal = _only_goal({"--push": push, "--to": forms, "--from-official": from_official})
    goals = [f"--to {form}" for form in forms] or [goal]
    _refuse_idle([option for option in given_options(context) if option in _GOES_WITH], goals)
    out = Output(as_json=json, quiet=quiet)
    if from_official is not None:
        _take_over(from_official, model, output, allow_missing_memory, force, out)
    elif model is None:
        raise ConfigError("no model is named.", f"Name a run: 'pinmem export RUN {goal} ...'.")
    elif push is not None:
        _push(model, push, revision, private, dry_run, out)
    else:
        graph = {
            "size": _parse_size(image_size),
            "preprocess": preprocess,
            "argmax": argmax,
            "opset": opset,
            "int8": int8,
            "calibrate": calibrate,
        }
        _write(model, forms, output, fp16, force, graph, out)


def _only_goal(goals: Mapping[str, Any]) -> str:
    named = [name for name, value in goals.items() if value]
    if len(named) == 1:
        return named[0]
    what = f"{' and '.join(named)} contradict each other." if named else "nothing is to be done."
    raise ConfigError(what, f"Name one of {', '.join(goals)}; see 'pinmem export --help'.")


def _refuse_idle(given: Sequence[str], goals: Sequence[str]) -> None:
    """Raise ConfigError where an option would do nothing."""
    for option in given:
        if not {*_GOES_WITH[option]} & {*goals, *given}:
            raise ConfigError(
                f"{option} does nothing with {' '.join(goals)}.",
                f"It goes with {', '.join(_GOES_WITH[option])}.",
            )


def _parse_size(text: str | None) -> tuple[int, int] | None:
    """Return (height, width) of a text that tells the width first."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text.lower())
    if match is None:
        raise ConfigError(
            f"'--size {text}' is not of the form WIDTHxHEIGHT.", "For example: 1024x512."
        )
    return int(match[2]), int(match[1])


def _push(
    model: str, repo: str, revision: str | None, private: bool, dry_run: bool, out: Output
) -> None:
    from pinmem_core.export.push import plan_upload, upload

    with out.listening() as tell:
        plan = plan_upload(model, repo, revision=revision, private=private, on_event=tell)
        url = None if dry_run else upload(plan)
    data = {
        "repository": plan.name.repo,
        "revision": plan.name.revision,
        "private": private,
        "dry_run": dry_run,
        "files": plan.sizes,
        "commit": url,
    }
    rows = [(path, size(count)) for path, count in plan.sizes.items()]
    head = ["", *plan.card.splitlines()[:_HEAD], "..."] if dry_run else []
    out.result(
        data, f"{_where(plan)}{' (nothing was sent)' if dry_run else ''}", fields(rows), *head
    )
    if dry_run:
        out.next_step(f"pinmem export {shell_join(model)} --push {repo}{_repeated(plan, repo)}")
    else:
        out.note(f"commit: {url}")
        out.next_step(f"pinmem predict IMAGE -o mask.png --model {plan.name}")


def _where(plan: "Upload") -> str:
    branch = f", branch {plan.name.revision}" if plan.name.revision else ""
    return f"{plan.name.repo}{branch}{', private' if plan.private else ''}"


def _repeated(plan: "Upload", repo: str) -> str:
    """Return the options of a rehearsal that the real command needs, too."""
    revision = plan.name.revision
    branch = f" --revision {revision}" if revision and not repo.endswith(f"@{revision}") else ""
    return f"{branch}{' --private' if plan.private else ''}"


def _write(
    model: str,
    forms: Sequence[Any],
    output: Path | None,
    half: bool,
    force: bool,
    graph: Mapping[str, Any],
    out: Output,
) -> None:
    from pinmem_core.export.files import GraphWishes, write_files

    with out.listening() as tell:
        written = write_files(
            model,
            forms,
            output,
            wishes=GraphWishes(**graph),
            half=half,
            force=force,
            on_event=tell,
        )
    out.result(
        {"model": model, "files": [_as_json(done) for done in written]},
        *(f"{done.path}  {size(done.bytes)}" for done in written),
    )
    for done in written:
        if done.agreement:
            out.note(f"{done.path.name}: {done.agreement}")
    name = written[0].path.parent if forms == ["safetensors"] else model
    out.next_step(f"pinmem predict IMAGE -o mask.png --model {shell_join(name)}")


def _as_json(done: "Written") -> dict[str, Any]:
    compared = [vars(one) for one in done.compared]
    return {"path": str(done.path), "bytes": done.bytes, "compared": compared}


def _take_over(
    file: Path,
    model: str | None,
    output: Path | None,
    allow_missing_memory: bool,
    force: bool,
    out: Output,
) -> None:
    from pinmem_core.checkpoints.checkpoint import write_checkpoint
    from pinmem_core.export.files import CHECKPOINT_FILES, prepare_folder
    from pinmem_core.export.official import convert_official

    if model is not None:
        raise ConfigError(
            f"--from-official makes a new model; '{model}' is one already.", "Leave it out."
        )
    if output is None:
        raise ConfigError("--from-official needs a folder to write to.", "Name one with -o.")
    with out.listening():
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
    out.next_step(f"pinmem predict IMAGE -o mask.png --model {shell_join(output)}")
