"""The TOML file of a study: variants, seeds and folds, and the settings of each run."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    Field,
    ValidationError,
    model_validator,
)

from pinmem_core.config import Settings, TrainConfig
from pinmem_core.documents import read_toml, validation_message
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.evaluation.report import DATA
from pinmem_core.inference import get_protocol
from pinmem_core.overrides import nested, validate
from pinmem_core.training.fit import recipe_settings

MOST_RUNS = 10_000
"""Maximum number of runs of a study (variants times seeds times folds)."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,99}")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._+=-]+")


def _as_folder_name(name: str) -> str:
    """Raise ValueError unless the name of a variant or fold is safe as a folder name."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name[:100]!r} cannot be the name of a variant or fold: use at most 100 letters, "
            "digits, '-', '_', '.', '+' and '=', and begin with a letter or digit"
        )
    return name


VariantName = Annotated[str, AfterValidator(_as_folder_name)]


class Run(NamedTuple):
    """One run of a study.

    Attributes:
        fold: Name of the fold; "" in a study without folds.
        variant: Name of the variant.
        seed: Seed of the run.
    """

    fold: str
    variant: str
    seed: int

    def __str__(self) -> str:
        """Return the name of the run, e.g. "pinmem-0" or "dusk/pinmem-0"."""
        return f"{self.fold}/{self.variant}-{self.seed}".removeprefix("/")


class Variant(Settings):
    """One row of the study's table."""

    about: str
    """Short description."""
    reference: str | None = Field(None, validation_alias=AliasChoices("reference", "beside"))
    """Variant to compare with; None for the baseline of the study."""
    of: str | None = None
    """Variant whose trained networks are reused; the settings then change prediction only: a
    within-checkpoint ablation."""
    placebo_of: str | None = None
    """Variant whose settings this one shares, with the part under test made ineffective."""
    settings: Mapping[str, Any] = {}
    """Dotted keys of `TrainConfig`; they override the shared settings, and those of `of` or
    `placebo_of`."""

    @property
    def base(self) -> str | None:
        """The variant that this one is an ablation or a placebo of."""
        return self.of or self.placebo_of


class Fold(Settings):
    """Domains of one fold; those that are not given are the study's."""

    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()


_WITHOUT_EFFECT = {"workers", "log_every", "logger", "checkpoint"}
"""Settings of training that no score depends on: a study may go on with others, also elsewhere."""


_FIXED = {"seed", "sources", "targets"}
"""Settings that the study gives each run."""


class Sweep(Settings):
    """A study of several variants and seeds."""

    title: str
    recipe: str
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    """Unseen domains; they are scored after a run."""
    leave_one_out: bool = False
    """Whether each source in turn is an unseen target of the runs on the others, before those of
    `targets`."""
    folds: Mapping[VariantName, Fold] = {}
    """Folds by name; each trains and scores all variants on domains of its own."""
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
            base = self.variants.get(variant.base) if variant.base else None
            if variant.of and (base is None or base.of):
                raise ValueError(f"'{name}' needs a trained variant, not '{variant.of}'")
            if variant.placebo_of and (variant.of or base is None or base.base):
                raise ValueError(
                    f"'{name}' cannot be a placebo of '{variant.placebo_of}': that is no trained "
                    "variant without 'of' and 'placebo_of'"
                )
        for settings in (self.settings, *(v.settings for v in self.variants.values())):
            if fixed := sorted(_FIXED & settings.keys()):
                raise ValueError(f"'{fixed[0]}' is the study's, and cannot be one of 'settings'")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("a seed occurs twice")
        names = Counter(name.casefold() for name in self.variants)
        twice = [name for name, times in names.items() if times > 1]
        if twice:
            raise ValueError(f"two variants are called '{twice[0]}' (ignoring case)")
        if self.leave_one_out and (self.folds or len(self.sources) < 2):
            raise ValueError("'leave_one_out' needs two or more sources, and no 'folds'")
        parts = self.parts()
        wanted = max(1, len(self.folds), len(self.sources) * self.leave_one_out)
        if len({name.casefold() for name in parts}) < wanted:
            raise ValueError("two folds have the same name")
        for name, part in parts.items():
            for kind, domains in (("source", part.sources), ("target", part.targets)):
                if not domains:
                    raise ValueError(f"there is no {kind}" + f" in the fold '{name}'" * bool(name))
        if len(self.seeds) * len(self.variants) * len(parts) > MOST_RUNS:
            raise ValueError(f"it has more than {MOST_RUNS:,} runs")
        return self

    def parts(self) -> dict[str, Self]:
        """Return the study of each fold by its name; without folds, this study by the name ""."""
        folds = {
            name: (fold.sources or self.sources, fold.targets or self.targets)
            for name, fold in self.folds.items()
        }
        if self.leave_one_out:
            for source in self.sources:
                others = tuple(other for other in self.sources if other != source)
                name = f"without-{_NOT_IN_NAMES.sub('-', source)}"
                folds[name] = others, (source, *self.targets)
        plain = {"folds": {}, "leave_one_out": False}
        return {
            name: self.model_copy(update={"sources": sources, "targets": targets, **plain})
            for name, (sources, targets) in folds.items()
        } or {"": self}

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
        settings = self._settings(variant)
        fixed = {"sources": self.sources, "targets": (), "seed": seed}
        config = validate({**settings, **fixed})
        if config.minutes is not None:
            raise ConfigError(
                f"{variant}: 'minutes' would give the runs of a study unequal lengths.",
                "Set 'iterations' instead.",
            )
        return config

    def _settings(self, variant: str) -> Mapping[str, Any]:
        chosen = self.variants[variant]
        if chosen.base:
            return nested(self._settings(chosen.base), chosen.settings)
        return nested(nested(recipe_settings(self.recipe), self.settings), chosen.settings)

    def settings_of(self, variant: str, seed: int) -> dict[str, Any]:
        """Return all settings that a run's report depends on, by section."""
        config = self.config(variant, seed).model_dump(mode="json", exclude=_WITHOUT_EFFECT)
        how = {"scored": list(self.scored()), "protocol": self.protocol}
        return {**config, **how, "of": self.variants[variant].of}

    def scored(self) -> tuple[str, ...]:
        """Return the domains that a run is scored on: the validation splits and the targets."""
        return (*self.scored_sources(), *self.targets)

    def scored_sources(self) -> tuple[str, ...]:
        """Return the validation splits of the sources."""
        return tuple(f"{source.partition('@')[0]}@val" for source in self.sources)


def read_sweep(path: Path, *, sources: Sequence[str] = (), targets: Sequence[str] = ()) -> Sweep:
    """Read the file of a study, and check the configuration of every variant.

    Args:
        path: TOML file of the study.
        sources: Sources that replace those of the file.
        targets: Targets that replace those of the file.

    Raises:
        ConfigError: The file is missing, is not TOML, or contains a value that is not allowed or
            has no effect.
    """
    try:
        given = read_toml(path)
        instead = {"sources": tuple(sources), "targets": tuple(targets)}
        instead = {name: domains for name, domains in instead.items() if domains}
        if given.get("folds") and instead:
            raise ValueError(f"it has 'folds', which name their own {' and '.join(instead)}")
        sweep = Sweep.model_validate(given | instead)
    except DataError as error:
        raise ConfigError(f"the study {error.message}", error.hint) from None
    except (ValidationError, ValueError) as error:
        reason = validation_message(error) if isinstance(error, ValidationError) else error
        raise ConfigError(f"the study {path}: {reason}.") from None
    get_protocol(sweep.protocol)
    configs = {name: sweep.config(name, sweep.seeds[0]) for name in sweep.variants}
    for name, variant in sweep.variants.items():
        if variant.base:
            _require_difference(name, variant, configs[name], configs[variant.base])
    return sweep


def _require_difference(name: str, variant: Variant, own: TrainConfig, base: TrainConfig) -> None:
    """Raise ConfigError if the settings of an ablation or a placebo have no effect."""
    if variant.of and own.model_copy(update={"model": base.model}) != base:
        raise ConfigError(
            f"the settings of '{name}' can only be those of 'model': it trains nothing.",
            f"Remove the others, or 'of = \"{variant.of}\"'.",
        )
    if own == base:
        raise ConfigError(f"'{name}' has the same settings as '{variant.base}'.")


def report_path(folder: Path, variant: str, seed: int) -> Path:
    """Return the path of a run's report."""
    return run_path(folder, variant, seed) / "study" / DATA


def settings_path(folder: Path, variant: str, seed: int) -> Path:
    """Return the path of the file that records a run's settings."""
    return folder / "settings" / f"{variant}-{seed}.json"


def lock_path(folder: Path, variant: str, seed: int) -> Path:
    """Return the path of the lock for training and scoring a run."""
    return folder / "settings" / f".{variant}-{seed}.lock"


def run_path(folder: Path, variant: str, seed: int) -> Path:
    """Return the folder of a run."""
    return folder / "runs" / f"{variant}-{seed}"
