"""`pinmem train`: train, resume, or show what would be trained."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pinmem_cli.lists import show_backbones, show_methods, show_recipe, show_recipes, show_settings
from pinmem_cli.names import backbones as known_backbones
from pinmem_cli.names import (
    devices,
    known_datasets,
    label_spaces,
    loggers,
    methods,
    models,
    recipes,
    runs,
)
from pinmem_cli.names import settings as known_settings
from pinmem_cli.options import (
    Json,
    OutputFolder,
    Quiet,
    given_options,
    minutes,
    names,
    option,
    refuse_others,
    shell_join,
    without,
)
from pinmem_cli.output import Output, is_first_process, say, size, table
from pinmem_cli.signals import stopping
from pinmem_cli.sweep import run_or_plan_sweep
from pinmem_core.errors import ConfigError, StoppedRunError
from pinmem_core.templates import percent

if TYPE_CHECKING:
    from pinmem_core.config import TrainConfig
    from pinmem_core.training import RunResult
    from pinmem_core.training.dry_run import Plan


EXAMPLES = (
    "pinmem train --recipe demo",
    "pinmem train --list",
    "pinmem train --recipe paper-resnet50 --dry-run",
    "pinmem train --sources mycity --from starter --time 30m",
    "pinmem train --resume auto",
    "pinmem train --sweep study.toml --jobs 2 -o study",
    "pinmem train --sources camvid:0006R0,camvid:0016E5 --targets camvid:0001TP",
    "pinmem train --sources demo:arcade,demo:toytown --method aggregate --set optim.lr=0.02",
)
_DATA, _HOW, _OUTPUT = "Data", "Training", "Output"
_MODES: dict[str, tuple[str, tuple[str, ...]]] = {
    "--list": ("lists all recipes", ()),
    "--show": ("shows a recipe as it is", ()),
    "--methods": ("lists all methods", ()),
    "--settings": ("lists all settings", ()),
    "--backbones": ("lists backbones", ()),
    "--resume": ("takes every setting from the run", ()),
    "--sweep": (
        "takes every setting but sources and targets from its file",
        ("--sources", "--targets", "--jobs", "--output", "--dry-run"),
    ),
}
"""Options that replace training by something else: what they do, and the options that they use."""


def train(
    context: typer.Context,
    sources: Annotated[
        list[str] | None,
        option(
            "Domains to train on, DATASET or DATASET:DOMAIN. Datasets: {datasets}.",
            metavar="DOMAIN,...",
            panel=_DATA,
            complete=known_datasets,
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        option(
            "Unseen domains to score on at the end.",
            metavar="DOMAIN,...",
            panel=_DATA,
            complete=known_datasets,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        option(
            "Label space to train: {label_spaces}, or a source's own. Default: the finest one that "
            "the labels of all sources can be mapped to.",
            panel=_DATA,
            complete=label_spaces,
        ),
    ] = None,
    allow_seen_targets: Annotated[
        bool,
        option(
            "Accept targets among the sources; their scores are marked as seen.",
            "--allow-seen-targets",
            panel=_DATA,
        ),
    ] = False,
    recipe: Annotated[
        str | None,
        option(
            "Named settings: {recipes}; or a TOML file, or a run whose settings are repeated. "
            "By default, the recipe of the first source, or settings that fit data and device.",
            panel=_HOW,
            complete=recipes,
        ),
    ] = None,
    method: Annotated[
        str | None, option("Training method: {methods}.", panel=_HOW, complete=methods)
    ] = None,
    iterations: Annotated[int | None, option("Number of iterations.", min=1, panel=_HOW)] = None,
    time: Annotated[
        str | None,
        option(
            "Wall-clock limit of the run, e.g. 30m or 2h: from the measured speed it plans as many "
            "iterations as fit.",
            metavar="TIME",
            panel=_HOW,
        ),
    ] = None,
    batch: Annotated[
        int | None, option("Images per domain and iteration.", min=1, panel=_HOW)
    ] = None,
    crop: Annotated[int | None, option("Side of the training crops in pixels.", panel=_HOW)] = None,
    seed: Annotated[int | None, option("Seed of all randomness.", min=0, panel=_HOW)] = None,
    device: Annotated[
        str | None,
        option("Device: auto, cpu, mps, cuda or cuda:N.", panel=_HOW, complete=devices),
    ] = None,
    init_weights: Annotated[
        str | None,
        option("Backbone weights: a file, or a name of torchvision or timm.", panel=_HOW),
    ] = None,
    init_from: Annotated[
        str | None,
        option(
            "Model to start from: starter, last, a run, a folder, or user/name on the Hub.",
            "--from",
            metavar="MODEL",
            panel=_HOW,
            complete=models,
        ),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        option("Parts that are not trained: backbone, decoder.", metavar="PART,...", panel=_HOW),
    ] = None,
    logger: Annotated[
        list[str] | None,
        option(
            "Log to tensorboard, wandb or mlflow.",
            metavar="LOGGER,...",
            panel=_OUTPUT,
            complete=loggers,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        option(
            "Any other setting, e.g. optim.lr=0.02; --settings lists them.",
            "--set",
            metavar="KEY=VALUE",
            panel=_HOW,
            complete=known_settings,
        ),
    ] = None,
    resume: Annotated[
        str | None,
        option(
            "Resume a run: its folder, its name, or auto for the newest unfinished one.",
            metavar="RUN",
            panel="Instead of training",
            complete=runs,
        ),
    ] = None,
    sweep: Annotated[
        Path | None,
        option(
            "Train and score the variants and seeds of a study, and print its table.",
            metavar="FILE",
            panel="Instead of training",
        ),
    ] = None,
    jobs: Annotated[
        int,
        option(
            "Runs of a study at once, each in its own process; they use the GPUs in turn.",
            min=1,
            panel="Instead of training",
        ),
    ] = 1,
    list_recipes: Annotated[
        bool, option("List the recipes.", "--list", panel="Instead of training")
    ] = False,
    show: Annotated[
        str | None,
        option(
            "Show a recipe, or the settings of a run, as TOML.",
            metavar="RECIPE",
            panel="Instead of training",
            complete=recipes,
        ),
    ] = None,
    list_methods: Annotated[
        bool, option("List the training methods.", "--methods", panel="Instead of training")
    ] = False,
    list_settings: Annotated[
        bool,
        option(
            "List all settings for --set and recipes.", "--settings", panel="Instead of training"
        ),
    ] = False,
    backbones: Annotated[
        str | None,
        option(
            "List the backbones that match, e.g. 'dinov2*', with their published weights.",
            metavar="PATTERN",
            panel="Instead of training",
            complete=known_backbones,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        option(
            "Show the settings and the cost, draw a batch, and train nothing.",
            "--dry-run",
            panel=_OUTPUT,
        ),
    ] = False,
    output: OutputFolder = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train on the source domains; score on their validation splits and on the targets."""
    for mode, (why, allowed) in _MODES.items():
        if mode in given_options(context):
            refuse_others(context, mode, why, allowed)
    shown_only = list_recipes or show or list_methods or list_settings or backbones
    if (dry_run or shown_only) and not is_first_process():
        return  # one process shows it
    out = Output(as_json=json, quiet=quiet)
    if list_recipes:
        show_recipes(out)
    elif show:
        show_recipe(out, show)
    elif list_methods:
        show_methods(out)
    elif list_settings:
        show_settings(out)
    elif backbones:
        show_backbones(out, backbones)
    elif resume:
        _resume(out, resume)
    elif sweep:
        domains = names(sources), names(targets)
        run_or_plan_sweep(out, sweep, output, *domains, jobs=jobs, dry_run=dry_run)
    elif "--jobs" in given_options(context):
        raise ConfigError("--jobs is for the runs of a study.", "Add --sweep FILE.")
    else:
        options = {
            "sources": names(sources) if sources else None,
            "targets": names(targets) if targets or sources else None,  # else the recipe's
            "classes": classes,
            "allow_seen_targets": allow_seen_targets or None,
            "method": method,
            "iterations": iterations,
            "minutes": minutes(time) if time is not None else None,
            "batch": batch,
            "augmentation.crop": crop,
            "seed": seed,
            "device": device,
            "init_weights": init_weights,
            "init_from": init_from,
            "optim.freeze": names(freeze) if freeze else None,
            "logger": names(logger) if logger else None,
        }
        _train(out, _resolve(out, recipe, options, settings or []), output, dry_run=dry_run)


def _train(out: Output, config: "TrainConfig", output: Path | None, *, dry_run: bool) -> None:
    from pinmem_core.paths import runs_root

    name = f"{datetime.now():%Y%m%d-%H%M%S}-{'dry-run' if dry_run else config.method}"
    folder = output or runs_root() / name
    if dry_run:
        _show_plan(out, config, folder.with_name(f"{folder.name}.png"))
        return

    from pinmem_core.training import train as train_run

    _run(out, lambda **options: train_run(config, folder, **options))


def _resume(out: Output, name: str) -> None:
    from pinmem_core.paths import find_run, newest_unfinished_run
    from pinmem_core.training import resume

    folder = newest_unfinished_run() if name == "auto" else find_run(name)
    out.note(f"run: {folder}")
    _run(out, lambda **options: resume(folder, **options))


def _run(out: Output, work: "Callable[..., RunResult]") -> None:
    """Train to the end, or until a signal."""
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
    """Merge recipe, options and --set; later ones override earlier ones."""
    from pinmem_core.training.fit import run_config

    given = {key: value for key, value in options.items() if value is not None}
    with out.listening() as listener:
        return run_config(recipe, given, overrides, listener)


def _show_result(out: Output, result: "RunResult") -> None:
    from pinmem_core.checkpoints.model_card import seen_in_words
    from pinmem_core.checkpoints.runs import read_run

    columns = {
        f"{name}\n({phase}, {seen_in_words(result.seen[name])})": score
        for phase, scores in result.scores.items()
        for name, score in scores.items()
    }
    rows = table("IoU %", *columns)
    spaces = [score.label_space for score in columns.values()]
    for name in dict.fromkeys(name for score in columns.values() for name in score.iou):
        rows.add_row(name, *(percent(score.iou.get(name)) for score in columns.values()))
    rows.add_section()
    if len({*spaces}) > 1:
        rows.add_row("classes", *spaces)
    rows.add_row("mIoU", *(percent(score.miou) for score in columns.values()))
    rows.add_row("images", *(str(score.images) for score in columns.values()))
    out.result(
        {
            "run": str(result.run),
            "checkpoint": str(result.checkpoint),
            "iterations": result.iterations,
            "parameters": result.parameters,
            "scores": {
                phase: {
                    name: {
                        "miou": score.miou,
                        "iou": score.iou,
                        "pixels": score.pixels,
                        "images": score.images,
                        "label_space": score.label_space,
                        "seen": result.seen[name],
                    }
                    for name, score in scores.items()
                }
                for phase, scores in result.scores.items()
            },
        },
        rows,
        f"run: {result.run}",
    )
    unscored = not result.scores.get("target")
    targets = f" --targets {shell_join(read_run(result.run).domain)}" if unscored else ""
    out.next_step(f"pinmem eval {shell_join(result.run)}{targets}")


def _show_plan(out: Output, config: "TrainConfig", picture: Path) -> None:
    """Show the settings and the cost of a run, and draw its first batch into `picture`."""
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
            "parameters": planned.parameters["total"],
            "trained_parameters": planned.parameters["trained"],
            "batch_shape": planned.batch_shape,
            "device": str(planned.device),
            "flops_per_iteration": round(planned.estimate.flops),
            "memory_bytes": planned.estimate.memory_bytes,
            "seconds_per_iteration": planned.seconds_per_iteration,
            "seconds_loading_batch": planned.loading_seconds,
            "seconds_training": planned.training_seconds,
            "iterations_in_time": planned.config.minutes and planned.iterations,
            "picture": str(picture),
        },
        *planned.config.model_dump_json(indent=2).splitlines(),
        rows,
        *_costs(planned),
        f"picture: {picture}",
    )
    out.next_step(without("--dry-run"))


def _costs(planned: "Plan") -> list[str]:
    from pinmem_core.checkpoints.model_card import parameters_in_words
    from pinmem_core.training.throughput import duration

    estimate, workers = planned.estimate, planned.config.workers
    scored = ", ".join(f"{name} ({count})" for name, count in planned.scored.items())
    computing = f"computing {estimate.seconds:.2f} s"
    loading = f"loading {planned.loading_seconds:.2f} s" + f" in {workers} processes" * (
        workers > 1
    )
    training = timedelta(seconds=round(planned.training_seconds))
    minutes = planned.config.minutes
    limit = f" that fit into {duration(60 * minutes)}" if minutes else ""
    return [
        f"scored afterwards: {scored or 'nothing'}",
        f"network: {parameters_in_words(planned.parameters)}; a batch is {planned.batch_shape}",
        f"one iteration: {estimate.flops / 1e9:,.1f} GFLOPs",
        f"memory: about {size(estimate.memory_bytes)} on {planned.device}, plus the program's own",
        f"time: about {planned.seconds_per_iteration:.2f} s an iteration ({computing}, {loading})",
        f"training: about {training} for {planned.iterations} iterations{limit}, without the "
        "initial memory and the scoring",
    ]
