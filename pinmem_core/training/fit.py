"""Settings of a run: those of a recipe, or settings that fit the data, the device and the time."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from pinmem_core.config import TrainConfig
from pinmem_core.data.catalog import get_card
from pinmem_core.data.prepared import Selection, select
from pinmem_core.devices import pick_device
from pinmem_core.distributed import local_rank
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.methods import methods
from pinmem_core.overrides import nested, validate, validated, with_overrides
from pinmem_core.recipe import load_recipe
from pinmem_core.training.fine_tuning import with_architecture_of

_PASSES = 40
"""How often a run sees each image, if the limits below allow it."""
_ITERATIONS = (800, 20_000)
_MOST_ITERATIONS = 100_000
"""Iterations before a given time reduces them."""
_MEMORY_SHARE = 0.7
"""Share of the device's memory that an iteration may take."""


class DataSize(NamedTuple):
    """Size of the training data.

    Attributes:
        domains: Number of domains in a batch.
        images: Number of training images.
        side: Median of the images' shorter sides, in pixels.
    """

    domains: int
    images: int
    side: int

    @classmethod
    def of(cls, sources: Sequence[str], pseudo_domains: int = 2) -> "DataSize":
        """Return the size of the training data of `sources`.

        Raises:
            ConfigError: A source does not exist.
            DataError: A source is not prepared or holds no training samples.
        """
        pools = [select(Selection.parse(source), default_split="train") for source in sources]
        sides = [min(s.width, s.height) for pool in pools for s in _some(pool)]
        domains = len(pools) if len(pools) > 1 else pseudo_domains
        return cls(domains, sum(map(len, pools)), int(np.median(sides)))


def _some(pool: Sequence[Any], count: int = 200) -> Iterable[Any]:
    return (pool[index] for index in range(0, len(pool), max(1, len(pool) // count)))


def run_config(
    recipe: str | None,
    given: Mapping[str, Any],
    overrides: Iterable[str] = (),
    on_event: Listener = ignore,
) -> TrainConfig:
    """Return the configuration of a run; later settings override earlier ones.

    Without a recipe, the settings are those of the first source's card, or else fit the data and
    the device; the architecture is that of `init_from`, if this is given.

    Args:
        recipe: Name of a recipe, TOML file, or run; None for the default.
        given: Values of dotted configuration keys.
        overrides: Texts such as "optim.lr=0.02".
        on_event: Callback for the notice of the recipe.

    Raises:
        ConfigError: A name, key or value is wrong.
        DataError: A source or the model is missing.
        MachineError: The device is missing, or the Hub cannot be reached.
    """
    explicit = with_overrides(nested({}, given), overrides)
    model = explicit.get("init_from")
    defaults = _defaults(given, explicit, on_event) if recipe is None else recipe_settings(recipe)
    method = defaults.get("method", TrainConfig.model_fields["method"].default)
    if explicit.get("method", method) != method:  # the settings are those of the other method
        defaults = {key: value for key, value in defaults.items() if key != "method_config"}
    if model:
        defaults = {key: value for key, value in defaults.items() if key != "init_weights"}
        if recipe is None:
            defaults = with_architecture_of(model, defaults)
    return validate(with_overrides(nested(defaults, given), overrides))


def recipe_settings(name: str) -> dict[str, Any]:
    """Return the settings of a recipe; for a run, without what its method and `tune` have added.

    Otherwise a run would keep these adapters and frozen parts with another method or `tune`.

    Args:
        name: Name of a recipe, TOML file, or folder or name of a run.

    Raises:
        ConfigError: There is no such recipe, or it is damaged or holds a wrong setting.
    """
    settings = load_recipe(name)
    config = validate(settings)
    method = methods.get(config.method)
    own = validated(method.Config, config.method_config, "method_config")
    added = {config.tune: {}, **method.adapters(own)}
    kept = {k: v for k, v in config.model.adapters.items() if v != added.get(k)}
    frozen = [part for part in config.optim.freeze if (config.tune, part) != ("frozen", "backbone")]
    return nested(settings, {"model.adapters": kept, "optim.freeze": frozen})


def _defaults(
    given: Mapping[str, Any], explicit: Mapping[str, Any], on_event: Listener
) -> dict[str, Any]:
    """Return the recipe of the first source, or else settings that fit."""
    sources = validate({"sources": explicit.get("sources", ())}).sources or ("demo",)
    first = sources[0]
    if name := get_card(Selection.parse(first).dataset).recipe:
        on_event(Notice(f"recipe: {name}"))
        return load_recipe(name)
    device = pick_device(str(explicit.get("device", "auto")), local_rank())
    settings = fitted_settings(DataSize.of(sources), device.type, _memory(device))
    on_event(Notice(f"recipe: none; the settings fit {first} and the device ({device})"))
    if explicit.get("iterations"):
        settings["minutes"] = None
    elif explicit.get("minutes"):
        settings["iterations"] = _MOST_ITERATIONS
    return settings


def fitted_settings(size: DataSize, device: str, memory: int | None) -> dict[str, Any]:
    """Return settings for own data.

    On a GPU the network is the paper's ResNet-50; elsewhere it is the small one of the starter. The
    method is `aggregate`: with such small networks, docs/study.md found no gain by a memory.

    Args:
        size: Size of the training data.
        device: Type of the device: "cpu", "mps" or "cuda".
        memory: Memory of the device in bytes; None if unknown.
    """
    if device == "cuda":
        settings = _gpu_settings()
        half = settings["compute"]["precision"] != "float32"
        largest_crop, images, bytes_per_pixel = 768, 8, 9_000 if half else 16_000
    else:
        settings = load_recipe("starter")
        del settings["optim"]["ema"]  # short runs would average over their whole length
        del settings["augmentation"]["strong"]  # made for a much longer run
        largest_crop, images, bytes_per_pixel = 192, 9, 2_500
    crop = min(largest_crop, max(64, size.side // 32 * 32))
    batch = max(2, images // size.domains)
    if memory is not None:
        pixels = _MEMORY_SHARE * memory / bytes_per_pixel / size.domains
        while crop > 128 and batch * crop**2 > pixels:
            crop -= 32
        batch = max(2, min(batch, int(pixels / crop**2)))
    passes = _PASSES * size.images // (batch * size.domains)
    low, high = _ITERATIONS
    chosen = {
        "targets": [],
        "iterations": min(max(passes, low), high),
        "batch": batch,
        "minutes": 240.0 if device == "cuda" else 60.0,
        "augmentation.crop": crop,
    }
    return nested(settings, chosen)


def _gpu_settings() -> dict[str, Any]:
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return {
        "method": "aggregate",
        "init_weights": "IMAGENET1K_V1",
        "workers": min(8, os.cpu_count() or 1),
        "log_every": 25,
        "model": {"backbone": "resnet50", "memory": {"init_batches": 100}},
        "optim": {"schedule": "polynomial"},
        "compute": {"precision": "bf16" if bf16 else "float32", "channels_last": True},
    }


def _memory(device: torch.device) -> int | None:
    """Return the memory of a device in bytes; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
