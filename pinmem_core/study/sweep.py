"""Studies: TOML files of variants and seeds, and the training and scoring of their runs."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    Field,
    ValidationError,
    model_validator,
)

from pinmem_core.checkpoints.hub import CHECKPOINT
from pinmem_core.config import Settings, TrainConfig, nested, validate
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.documents import json_text, read_json_object, read_toml, validation_message
from pinmem_core.errors import BusyError, ConfigError, DataError
from pinmem_core.evaluation.report import DATA, evaluate_run
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.files import write_atomic
from pinmem_core.inference import get_protocol
from pinmem_core.locks import hold_lock
from pinmem_core.models import Segmenter, load_checkpoint, save_checkpoint
from pinmem_core.paths import register_run
from pinmem_core.recipe import load_recipe
from pinmem_core.training import resume, train
from pinmem_core.training.setup import load_data, resolve

MOST_RUNS = 10_000
"""Maximum number of runs of a study (variants times seeds)."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,99}")


def _as_folder_name(name: str) -> str:
    """Raise ValueError unless the name of a variant is safe as a folder name."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name[:100]!r} cannot be the name of a variant: use at most 100 letters, digits, "
            "'-', '_', '.', '+' and '=', and begin with a letter or digit"
        )
    return name


VariantName = Annotated[str, AfterValidator(_as_folder_name)]


class Variant(Settings):
    """One row of the study's table."""

    about: str
    """Short description."""
    reference: str | None = Field(None, validation_alias=AliasChoices("reference", "beside"))
    """Variant to compare with; None for the baseline of the study."""
    of: str | None = None
    """Variant whose trained networks are reused; the settings then change prediction only."""
    settings: Mapping[str, Any] = {}
    """Dotted keys of `TrainConfig`; they override the shared settings."""


class Sweep(Settings):
    """A study of several variants and seeds."""

    title: str
    recipe: str
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    sources: tuple[str, ...] = Field(min_length=1)
    targets: tuple[str, ...] = Field(min_length=1)
    """Unseen domains; they are scored after a run."""
    protocol: str = "paper-train"
    baseline: str
    settings: Mapping[str, Any] = {}
    """Dotted keys for all variants; they override the recipe."""
    variants: Mapping[VariantName, Variant] = Field(min_length=1)

    @model_validator(mode="after")
    def _comparisons_exist(self) -> Self:
        for name in (self.baseline, *(v.reference for v in self.variants.values() if v.reference)):
            if name not in self.variants:
                raise ValueError(f"there is no variant '{name}' to compare with")
        for name, variant in self.variants.items():
            trained = self.variants.get(variant.of) if variant.of else None
            if variant.of and (trained is None or trained.of):
                raise ValueError(f"'{name}' needs a trained variant, not '{variant.of}'")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("a seed occurs twice")
        names = Counter(name.casefold() for name in self.variants)
        twice = [name for name, times in names.items() if times > 1]
        if twice:
            raise ValueError(f"two variants are called '{twice[0]}' (ignoring case)")
        if len(self.seeds) * len(self.variants) > MOST_RUNS:
            raise ValueError(f"it has more than {MOST_RUNS:,} runs")
        return self

    def runs(self) -> Iterator[tuple[str, int]]:
        """Yield (variant, seed): all variants of a seed, then the next seed."""
        for seed in self.seeds:
            for name in self.variants:
                yield name, seed

    def config(self, variant: str, seed: int) -> TrainConfig:
        """Return the configuration of a run; it has no targets, so training cannot use them.

        Raises:
            ConfigError: A key or value is not allowed, or the run has a limit of time.
        """
        settings = nested(load_recipe(self.recipe), self.settings)
        chosen = self.variants[variant]
        if chosen.of:
            settings = nested(settings, self.variants[chosen.of].settings)
        settings = nested(settings, chosen.settings)
        fixed = {"sources": self.sources, "targets": (), "seed": seed}
        config = validate({**settings, **fixed})
        if config.minutes is not None:
            raise ConfigError(
                f"{variant}: 'minutes' would give the runs of a study unequal lengths.",
                "Set 'iterations' instead.",
            )
        return config

    def settings_of(self, variant: str, seed: int) -> dict[str, Any]:
        """Return all settings that a run's report depends on, by section."""
        config = self.config(variant, seed).model_dump(mode="json")
        how = {"scored": list(self.scored()), "protocol": self.protocol}
        return {**config, **how, "of": self.variants[variant].of}

    def scored(self) -> tuple[str, ...]:
        """Return the domains that a run is scored on: the validation splits and the targets."""
        return (*(f"{source}@val" for source in self.sources), *self.targets)


def read_sweep(path: Path, *, sources: Sequence[str] = (), targets: Sequence[str] = ()) -> Sweep:
    """Read the file of a study, and check the configuration of every variant.

    Args:
        path: TOML file of the study.
        sources: Sources that replace those of the file, e.g. for leave-one-domain-out.
        targets: Targets that replace those of the file.

    Raises:
        ConfigError: The file is missing, is not TOML, or contains a value that is not allowed.
    """
    try:
        given = read_toml(path)
        instead = {"sources": tuple(sources), "targets": tuple(targets)}
        sweep = Sweep.model_validate(given | {k: v for k, v in instead.items() if v})
    except DataError as error:
        raise ConfigError(f"the study {error.message}", error.hint) from None
    except (ValidationError, ValueError) as error:
        reason = validation_message(error) if isinstance(error, ValidationError) else error
        raise ConfigError(f"the study {path}: {reason}.") from None
    get_protocol(sweep.protocol)
    for variant in sweep.variants:
        sweep.config(variant, sweep.seeds[0])
    return sweep


def report_path(folder: Path, variant: str, seed: int) -> Path:
    """Return the path of a run's report."""
    return run_path(folder, variant, seed) / "study" / DATA


def settings_path(folder: Path, variant: str, seed: int) -> Path:
    """Return the path of the file that records a run's settings."""
    return folder / "settings" / f"{variant}-{seed}.json"


def lock_path(folder: Path, variant: str, seed: int) -> Path:
    """Return the path of the lock for training and scoring a run."""
    return folder / "settings" / f".{variant}-{seed}.lock"


def _refuse_other_settings(sweep: Sweep, folder: Path, variant: str, seed: int) -> None:
    """Raise ConfigError if a run has other settings, so that a table never mixes them."""
    run = run_path(folder, variant, seed)
    if not run.exists():
        return
    wanted = sweep.settings_of(variant, seed)
    try:
        recorded = read_json_object(settings_path(folder, variant, seed))
    except DataError:
        recorded = {}
    differing = sorted(key for key in wanted if recorded.get(key) != wanted[key])
    if differing:
        raise ConfigError(
            f"{run} was made with other settings: {', '.join(differing)}.",
            "Choose another folder, or remove this run.",
        )


def run_path(folder: Path, variant: str, seed: int) -> Path:
    """Return the folder of a run."""
    return folder / "runs" / f"{variant}-{seed}"


def states_of(
    sweep: Sweep, folder: Path
) -> dict[tuple[str, int], Literal["done", "begun", "absent"]]:
    """Return the state of each run by variant and seed, without changing the folder.

    Raises:
        ConfigError: The folder holds a run that was made with other settings.
    """
    states: dict[tuple[str, int], Literal["done", "begun", "absent"]] = {}
    for variant, seed in sweep.runs():
        _refuse_other_settings(sweep, folder, variant, seed)
        if report_path(folder, variant, seed).exists():
            states[variant, seed] = "done"
        else:
            begun = run_path(folder, variant, seed).exists()
            states[variant, seed] = "begun" if begun else "absent"
    return states


def run_study(
    sweep: Sweep,
    folder: Path,
    *,
    on_event: Listener = ignore,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Train and score all runs without a report, and resume those that were started.

    A run that another process is training is skipped.

    Args:
        sweep: Variants and seeds to compare.
        folder: Folder of the study; it is created if necessary.
        on_event: Callback for progress events.
        stop: Function that is called after each iteration, as in `train`.

    Returns:
        Number of runs that were left to other processes.

    Raises:
        ConfigError: The folder holds a run that was made with other settings, or a target is one of
            the sources and the setting `allow_seen_targets` is not set.
        PinMemError: `train`, `resume` or `evaluate_run` failed; finished runs are kept.
        StoppedRunError: `stop` returned True.
    """
    runs, elsewhere = list(sweep.runs()), 0
    for variant, seed in runs:
        _refuse_other_settings(sweep, folder, variant, seed)
    prepare_synthetic([*sweep.sources, *sweep.targets], on_event)
    scored = sweep.config(*runs[0]).model_copy(update={"targets": sweep.targets})
    load_data(resolve(scored), ignore)  # refuses seen targets
    for number, (variant, seed) in enumerate(runs, start=1):
        if report_path(folder, variant, seed).exists():
            continue
        try:
            with hold_lock(lock_path(folder, variant, seed), f"run {variant}-{seed}", on_event):
                if report_path(folder, variant, seed).exists():
                    continue  # another process has just finished it
                on_event(Notice(f"run {number} of {len(runs)}: {variant}, seed {seed}"))
                _complete(sweep, folder, variant, seed, on_event, stop)
        except BusyError:
            elsewhere += 1
    return elsewhere


def _complete(
    sweep: Sweep,
    folder: Path,
    variant: str,
    seed: int,
    on_event: Listener,
    stop: Callable[[], bool],
) -> None:
    run, trained = run_path(folder, variant, seed), sweep.variants[variant].of
    noted = settings_path(folder, variant, seed)
    noted.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(noted, json_text(sweep.settings_of(variant, seed), indent=1).encode())
    if trained:
        _adopt(run_path(folder, trained, seed), run, sweep.config(variant, seed))
    elif not (run / "scores.json").exists():
        register_run(run, part_of="study")
        if (run / "config.json").exists():
            resume(run, on_event=on_event, stop=stop)
        else:
            train(sweep.config(variant, seed), run, on_event=on_event, stop=stop)
    report = evaluate_run(str(run), sweep.scored(), protocol=sweep.protocol, on_event=on_event)
    path = report_path(folder, variant, seed)
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, report.as_text().encode())


def _adopt(trained: Path, run: Path, config: TrainConfig) -> None:
    """Create a run from the network of another run, with the architecture settings of `config`.

    Raises:
        BusyError: The other run is not finished.
        ConfigError: The weights of the other run do not fit the network of `config`.
    """
    if not (trained / "scores.json").exists():
        raise BusyError(f"another process is training {trained}.")
    segmenter, _ = load_checkpoint(trained / CHECKPOINT)
    space = {"label_space": segmenter.label_space}
    changed = Segmenter(resolve(config).model.model_copy(update=space))
    try:
        changed.load_state_dict(segmenter.state_dict())
    except RuntimeError:
        raise ConfigError(
            f"{run.name} cannot use the network of {trained.name}: the weights do not fit.",
            "Remove the settings that change the architecture.",
        ) from None
    save_checkpoint(changed, run / CHECKPOINT, segmenter.about)
