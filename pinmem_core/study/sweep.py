"""The definition of a study: a TOML file of variants with shared and individual settings."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from pinmem_core.config import TrainConfig, nested, validate
from pinmem_core.documents import read_toml
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.inference import get_protocol
from pinmem_core.recipe import load_recipe

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


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(_Strict):
    """One row of the study's table."""

    about: str
    """Short description."""
    beside: str | None = None
    """Variant to compare with; None for the baseline of the study."""
    of: str | None = None
    """Variant whose trained networks are reused; the settings then change prediction only."""
    settings: Mapping[str, Any] = {}
    """Dotted keys of `TrainConfig`; they override the shared settings."""


class Sweep(_Strict):
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
        for name in (self.baseline, *(v.beside for v in self.variants.values() if v.beside)):
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
            ConfigError: A key or value is not allowed.
        """
        settings = nested(load_recipe(self.recipe), self.settings)
        chosen = self.variants[variant]
        if chosen.of:
            settings = nested(settings, self.variants[chosen.of].settings)
        settings = nested(settings, chosen.settings)
        fixed = {"sources": self.sources, "targets": (), "seed": seed}
        return validate({**settings, **fixed})

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
        raise ConfigError(f"the study {path}: {_reason(error)}.") from None
    get_protocol(sweep.protocol)
    for variant in sweep.variants:
        sweep.config(variant, sweep.seeds[0])
    return sweep


def _reason(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    what = first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
