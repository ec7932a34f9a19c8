"""`pinmem train`: train, resume, or show what would be trained."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pinmem_cli.options import (
    Json,
    OutputFolder,
    Quiet,
    examples,
    given_options,
    names,
    refuse_others,
    shell_join,
    without,
)
from pinmem_cli.output import Output, is_first_process, say, size, table
from pinmem_cli.signals import stopping
from pinmem_cli.sweep import plan_sweep, run_sweep
from pinmem_core.errors import StoppedRunError

if TYPE_CHECKING:
    from pinmem_core.config import TrainConfig
    from pinmem_core.training.dry_run import Plan


def show_recipes(out: Output) -> None:
    """Show what recipes there are."""
    from pinmem_core.config import load_recipe, recipe_names, recipe_title, validate

    text = "what it is", "network"
    rows = table("recipe", *text, "iterations", "crop", text=text)
    recipes = []
    for name in recipe_names():
        config, title = validate(load_recipe(name)), recipe_title(name)
        network = {"backbone": config.model.backbone, "decoder": config.model.decoder}
        crop = config.augmentation.crop
        what = {"title": title, **network, "iterations": config.iterations, "crop": crop}
        recipes.append({"name": name, **what})
        figures = str(config.iterations), str(crop)
        rows.add_row(name, title, ", ".join(network.values()), *figures)
    out.result({"recipes": recipes}, rows)
    out.next_step(f"pinmem train --show {recipe_names()[0]}")


def show_recipe(out: Output, name: str) -> None:
    """Show a recipe's file; as JSON, every setting of a run by it."""
    from pinmem_core.config import load_recipe, recipe_text, recipe_title, validate

    config = validate(load_recipe(name)).model_dump(mode="json")
    data = {"name": name, "title": recipe_title(name), "config": config}
    out.result(data, *recipe_text(name).splitlines())
    out.next_step(f"pinmem train --recipe {name} --dry-run")


def show_plan(out: Output, config: "TrainConfig", picture: Path) -> None:
    """Show what would be trained and what it would take; draw the first batch into `picture`."""
    from pinmem_core.images import write_png
    from pinmem_core.training.dry_run import plan

    with out.listening() as listener:
        planned = plan(config, on_event=listener)
    write_png(picture, planned.batch_picture)
    rows = table("domain", "training samples")
    for name, count in planned.domains.items():
        rows.add_row(name, str(count))
    out.result(
        {
            "config": planned.config.model_dump(mode="json"),
            "domains": planned.domains,
            "scored": planned.scored,
            "parameters": planned.parameters,
            "batch_shape": planned.batch_shape,
            "device": str(planned.device),
            "flops_per_iteration": round(planned.estimate.flops),
            "memory_bytes": planned.estimate.memory_bytes,
            "seconds_per_iteration": planned.seconds_per_iteration,
            "seconds_loading_batch": planned.loading_seconds,
            "seconds_training": planned.training_seconds,
            "picture": str(picture),
        },
        *planned.config.model_dump_json(indent=2).splitlines(),
        rows,
        *_costs(planned),
        f"picture: {picture}",
    )
    out.next_step(without("--dry-run"))


def _costs(planned: "Plan") -> list[str]:
    estimate, workers = planned.estimate, planned.config.workers
    scored = ", ".join(f"{name} ({count})" for name, count in planned.scored.items())
    computing = f"computing {estimate.seconds:.2f} s"
    loading = f"loading {planned.loading_seconds:.2f} s" + f" in {workers} processes" * (
        workers > 1
    )
    training = timedelta(seconds=round(planned.training_seconds))
    return [
        f"scored afterwards: {scored or 'nothing'}",
        f"network: {planned.parameters:,} parameters; a batch is {planned.batch_shape}",
        f"one iteration: {estimate.flops / 1e9:,.1f} GFLOPs",
        f"memory: about {size(estimate.memory_bytes)} on {planned.device}, beside the program",
        f"time: about {planned.seconds_per_iteration:.2f} s an iteration ({computing}, {loading})",
        f"training: about {training} for {planned.config.iterations} iterations, without the "
        "first memory and the scoring",
    ]


if TYPE_CHECKING:
    from pinmem_core.config import TrainConfig
    from pinmem_core.evaluation import Scores
    from pinmem_core.training import RunResult

EXAMPLES = examples(
    "pinmem train --recipe demo",
    "pinmem train --list",
    "pinmem train --recipe paper-resnet50 --dry-run",
    "pinmem train --resume auto",
    "pinmem train --sweep study.toml -o study",
    "pinmem train --sources camvid:0006R0,camvid:0016E5 --targets camvid:0001TP",
    "pinmem train --sources demo:arcade,demo:toytown --method aggregate --set optim.lr=0.02",
)
_WHAT, _HOW, _OUTPUT = "What to learn from", "How to learn", "Output"
_MODES: dict[str, tuple[str, tuple[str, ...]]] = {
    "--list": ("lists all recipes", ()),
    "--show": ("shows a recipe as it is", ()),
    "--resume": ("takes everything from the run", ()),
    "--sweep": (
        "takes every setting but sources and targets from its file",
        ("--sources", "--targets", "--output", "--dry-run"),
    ),
}
"""Options that change what the command does: what they do, and which others they listen to."""


def train(
    context: typer.Context,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            help="Domains to train on: dataset or dataset:domain; by comma, or repeated.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help="Unseen domains to score on at the end; by comma, or repeated.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Named settings; by default what suits the first source.", rich_help_panel=_HOW
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="pinmem, mldg or aggregate.", rich_help_panel=_HOW)
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps.", rich_help_panel=_HOW)
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images per domain and step.", rich_help_panel=_HOW)
    ] = None,
    crop: Annotated[
        int | None, typer.Option(help="Side of the training crops, pixels.", rich_help_panel=_HOW)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="All randomness follows from it.", rich_help_panel=_HOW),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, mps, cuda or cuda:N.", rich_help_panel=_HOW)
    ] = None,
    init_weights: Annotated[
        str | None,
        typer.Option(
            help="Backbone weights: a file, or torchvision's name for them.", rich_help_panel=_HOW
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting, e.g. optim.lr=0.02.", rich_help_panel=_HOW),
    ] = None,
    output: OutputFolder = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Go on with a run: its folder, its name, or auto for the newest unfinished one.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show what would be trained and what it would take, draw a batch, and stop.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    list_recipes: Annotated[
        bool, typer.Option("--list", help="List the recipes, and stop.", rich_help_panel=_OUTPUT)
    ] = False,
    show: Annotated[
        str | None,
        typer.Option(
            "--show", metavar="RECIPE", help="Show a recipe, and stop.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    sweep: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Train and score all variants and seeds of a study, and print its table.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train on the source domains; score on their validation splits and on the targets."""
    from pinmem_core.home import runs_root

    options = {
        "sources": names(sources) if sources else None,
        "targets": names(targets) if targets or sources else None,  # a recipe's suit its sources
        "method": method,
        "iterations": iterations,
        "batch": batch,
        "augmentation.crop": crop,
        "seed": seed,
        "device": device,
        "init_weights": init_weights,
    }
    for mode, (why, allowed) in _MODES.items():
        if mode in given_options(context):
            refuse_others(context, mode, why, allowed)
    if (dry_run or list_recipes or show) and not is_first_process():
        return  # what one process finds out and shows
    out = Output(as_json=json, quiet=quiet)
    if sweep:
        folder = output or runs_root() / sweep.stem
        act = plan_sweep if dry_run else run_sweep
        act(out, sweep, folder, names(sources), names(targets))
        return
    if list_recipes:
        show_recipes(out)
        return
    if show:
        show_recipe(out, show)
        return
    if resume:
        _go_on(out, resume)
        return
    config = _resolve(out, recipe, options, settings or [])
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{'dry-run' if dry_run else config.method}"
    folder = output or runs_root() / name
    if dry_run:
        show_plan(out, config, folder.with_name(f"{folder.name}.png"))
        return

    from pinmem_core.training import train as train_run

    _run(out, lambda **how: train_run(config, folder, **how))


def _go_on(out: Output, name: str) -> None:
    from pinmem_core.home import find_run, newest_unfinished_run
    from pinmem_core.training import resume

    folder = newest_unfinished_run() if name == "auto" else find_run(name)
    out.note(f"run: {folder}")
    _run(out, lambda **how: resume(folder, **how))


def _run(out: Output, work: "Callable[..., RunResult]") -> None:
    """Train until the end, or until a signal says so."""
    with out.listening() as listener, stopping(out) as stop:
        try:
            result = work(on_event=listener, stop=stop)
        except StoppedRunError as error:
            if is_first_process():
                say(f"{error.message} {error.hint or ''}".rstrip())
            raise typer.Exit(stop.exit_code) from None
    if is_first_process():
        _show_result(out, result)


def _resolve(
    out: Output, recipe: str | None, options: dict[str, Any], overrides: list[str]
) -> "TrainConfig":
    """Join recipe, options and --set, the later over the earlier."""
    from pinmem_core.config import load_recipe, nested, validate, with_overrides
    from pinmem_core.data.catalog import get_card
    from pinmem_core.data.prepared import Selection

    if recipe is None:
        first = options["sources"][0] if options["sources"] else "demo"
        recipe = get_card(Selection.parse(first).dataset).recipe
        out.note(f"recipe: {recipe}")
    given = {key: value for key, value in options.items() if value is not None}
    return validate(with_overrides(nested(load_recipe(recipe), given), overrides))


def _show_result(out: Output, result: "RunResult") -> None:
    from pinmem_core.checkpoints.model_card import seen_in_words

    columns = {
        f"{name}\n({phase}, {seen_in_words(result.seen[name])})": score
        for phase, scores in result.scores.items()
        for name, score in scores.items()
    }
    rows = table("IoU %", *columns)
    for street_class in next(iter(columns.values())).iou if columns else ():
        rows.add_row(street_class, *(_percent(s.iou[street_class]) for s in columns.values()))
    rows.add_section()
    rows.add_row("mIoU", *(_percent(score.miou) for score in columns.values()))
    rows.add_row("images", *(str(score.images) for score in columns.values()))
    out.result(
        {
            "run": str(result.run),
            "checkpoint": str(result.checkpoint),
            "iterations": result.iterations,
            "scores": {
                phase: {
                    name: {**score_json(score), "seen": result.seen[name]}
                    for name, score in scores.items()
                }
                for phase, scores in result.scores.items()
            },
        },
        rows,
        f"run: {result.run}",
    )
    out.next_step(f"pinmem predict IMAGE -o mask.png --model {shell_join(result.run)}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def score_json(score: "Scores") -> dict[str, Any]:
    """Return the JSON form of one domain's scores, the same for every command."""
    return {
        "miou": score.miou,
        "iou": score.iou,
        "pixels": score.pixels,
        "images": score.images,
    }
