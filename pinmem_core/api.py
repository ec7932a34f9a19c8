"""The functions of `import pinmem_core as pm`: the commands of the CLI as Python calls."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pinmem_core import evaluation, training
from pinmem_core.checkpoints.hub import CHECKPOINT, STARTER
from pinmem_core.checkpoints.runs import list_runs
from pinmem_core.config import TrainConfig
from pinmem_core.data.catalog import cards, get_card, read_card
from pinmem_core.data.convert import Reencoding
from pinmem_core.data.locate import locate_raw_files
from pinmem_core.data.prepare import prepare as prepare_dataset
from pinmem_core.data.prepared import PreparedDataset
from pinmem_core.errors import ConfigError
from pinmem_core.evaluation import Report
from pinmem_core.events import Listener, ignore
from pinmem_core.methods import methods
from pinmem_core.models.backbones import backbones
from pinmem_core.models.backbones.timm import Timm
from pinmem_core.models.decoders import decoders
from pinmem_core.overrides import nested, validate
from pinmem_core.paths import runs_root
from pinmem_core.recipe import recipe_names
from pinmem_core.training import RunResult
from pinmem_core.training.fit import run_config


def train(
    recipe: str | Path | TrainConfig | None = None,
    output: str | Path | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    on_event: Listener = ignore,
    stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> RunResult:
    """Train a network and score it on its sources and targets.

    Example:
        `train("demo", seed=1, settings={"optim.lr": 0.005})`, or with data of your own
        `train(sources=["mycity"], init_from="starter", minutes=10)`

    Args:
        recipe: Name of a recipe, TOML file, or run; or a complete configuration. None for the
            recipe of the first source, or settings that fit the data and the device; without
            sources, for "demo".
        output: Folder to make; None for a new one below `PINMEM_HOME`.
        settings: Values of dotted configuration keys. They overrule the recipe; a mapping for a
            section, such as `{"optim": {"lr": 0.005}}`, overrules the keys that it holds.
        on_event: Callback for progress events.
        stop: Called after each iteration; if it returns True, the run saves its state and ends.
        options: Values of configuration keys without a dot, such as `seed=1`; the attributes of
            `TrainConfig` are these keys.

    Raises:
        ConfigError: There is no such recipe or key, the configuration contradicts itself, or the
            folder is in use.
        DataError: A source or target is missing, empty or damaged.
        MachineError: The device is missing or too small.
        StoppedRunError: `stop` returned True.
    """
    values = {**(settings or {}), **options}
    if isinstance(recipe, TrainConfig):
        config = validate(nested(recipe.model_dump(), values))
    else:
        name = None if recipe is None else str(recipe)
        config = run_config(name, values, on_event=on_event)
    if output is None:
        output = runs_root() / f"{datetime.now():%Y%m%d-%H%M%S}-{config.method}"
    return training.train(config, Path(output), on_event=on_event, stop=stop)


def resume(
    run: str | Path, *, on_event: Listener = ignore, stop: Callable[[], bool] = lambda: False
) -> RunResult:
    """Resume a run that was stopped or killed; it ends as if it had not been interrupted.

    Args:
        run: Its folder.
        on_event: Callback for progress events.
        stop: As for `train`.

    Raises:
        ConfigError: The run has ended.
        DataError: The folder holds no run, or its samples have changed.
        MachineError: The device is missing, or another process trains this run.
        StoppedRunError: `stop` returned True.
    """
    return training.resume(Path(run), on_event=on_event, stop=stop)


def prepare(
    dataset: str,
    source: str | Path | Sequence[str | Path] = (),
    *,
    card: str | Path | None = None,
    label_map: str | None = None,
    reencoding: Reencoding | None = None,
    strict: bool = False,
    jobs: int | None = None,
    on_event: Listener = ignore,
) -> PreparedDataset:
    """Verify a dataset's files, unify its labels and write its manifest.

    Args:
        dataset: Name of the dataset.
        source: Folders or archives that hold its files. Without any, those of the last time are
            used, or the dataset is downloaded if its terms were accepted.
        card: YAML card of a dataset of your own.
        label_map: How raw labels become classes; None for the default of the layout.
        reencoding: Format, quality and height of re-encoded images
            (`pinmem_core.data.convert.Reencoding`); None leaves the images where they are.
        strict: Refuse the dataset at the first defect instead of leaving samples out.
        jobs: Samples that are converted at once; None for one a core.
        on_event: Callback for progress events.

    Raises:
        ConfigError: There is no such dataset or label map, its terms are not accepted, or `jobs` is
            below 1.
        DataError: Files are missing or damaged.
        MachineError: The disk is too small, or nothing here unpacks an archive.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"{jobs} jobs convert nothing.", "Set 'jobs' to 1 or more.")
    described = read_card(Path(card)) if card else get_card(dataset)
    given = [source] if isinstance(source, str | Path) else source
    folders = locate_raw_files(described, [*map(Path, given)], on_event=on_event)
    return prepare_dataset(
        described,
        folders,
        label_map=label_map,
        reencoding=reencoding,
        strict=strict,
        jobs=jobs,
        on_event=on_event,
    )


def evaluate(
    model: str | Path,
    targets: Sequence[str] = (),
    *,
    protocol: str | None = None,
    classes: str | None = None,
    device: str = "auto",
    output: str | Path | None = None,
    on_event: Listener = ignore,
) -> Report:
    """Score a model on domains.

    Args:
        model: Folder or name of a run, folder of a checkpoint, "starter", "last" for the newest
            finished run, or `user/name[@revision]` on the Hub.
        targets: `dataset[:domain][@split]`, or a text of several with commas between them; none
            for the targets of the run.
        protocol: Name of a protocol, also with changes, such as "paper-train+flip"; None for the
            model's own, or else "paper-train".
        classes: Label space to score in; None for the model's, or a coarser one where the labels
            need it.
        device: Device name: "auto", "cpu", "mps", "cuda", "cuda:1", ...
        output: New folder for `report.json` and `report.html`; None writes nothing.
        on_event: Callback for progress events.

    Raises:
        ConfigError: A target or the protocol does not exist, or `output` is in use.
        DataError: The model or a target's data is missing or damaged; `output` then holds the
            scores of the targets without errors, if there are any.
        MachineError: The device is missing.
    """
    return evaluation.evaluate_run(
        str(model),
        targets,
        protocol=protocol,
        classes=classes,
        device=device,
        output=None if output is None else Path(output),
        on_event=on_event,
    )


def list_datasets() -> list[str]:
    """Return the names of all datasets, your own included."""
    return list(cards())


def list_recipes() -> list[str]:
    """Return the names of all recipes."""
    return recipe_names()


def list_methods() -> list[str]:
    """Return the names of all methods."""
    return sorted(methods.all())


def list_backbones(pattern: str = "*") -> list[str]:
    """Return the names of backbones that match a pattern.

    Args:
        pattern: Pattern with wildcards. "timm:PATTERN" searches the networks of timm, e.g.
            "timm:dinov2*"; without timm, there are none.
    """
    if pattern.startswith("timm:"):
        return [f"timm:{name}" for name in Timm.available(pattern.removeprefix("timm:"))]
    return [name for name in backbones.all() if ":" not in name and fnmatch(name, pattern)]


def list_decoders() -> list[str]:
    """Return the names of all decoders."""
    return list(decoders.all())


def list_models() -> list[str]:
    """Return the names of models that `load` takes: the starter, and the runs with a checkpoint.

    A run outside of `PINMEM_HOME` has the path of its folder as its name.
    """
    trained = (run for run in list_runs() if (run.folder / CHECKPOINT / "config.json").is_file())
    return [STARTER, *sorted(run.name for run in trained)]
