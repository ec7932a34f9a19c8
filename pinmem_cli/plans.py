"""What `pinmem train` shows without training: the recipes, and what a run would do and take."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pinmem_cli.options import without
from pinmem_cli.output import Output, size, table

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
