"""Completion and cross-field checks of a configuration."""

from pinmem_core.config import ComputeConfig, TrainConfig
from pinmem_core.distributed import started_by_torchrun
from pinmem_core.errors import ConfigError
from pinmem_core.label_space import CLASSES
from pinmem_core.methods import methods


def resolve(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the requirements of its method applied.

    Raises:
        ConfigError: The configuration contradicts itself, or names no source.
    """
    method = methods.get(config.method)
    if not config.sources:
        raise ConfigError(
            "no source domain is named.",
            "Name some: '--sources demo:arcade,demo:toytown'. 'pinmem data list' shows all.",
        )
    wanted = method.memory == "required" if config.use_memory is None else config.use_memory
    if wanted != (method.memory == "required") and method.memory != "optional":
        raise ConfigError(
            f"use_memory={str(wanted).lower()} contradicts the method '{config.method}'.",
            f"Its memory is {method.memory}; leave use_memory out.",
        )
    if wanted and config.model.memory is None:
        raise ConfigError(f"the method '{config.method}' needs the section model.memory.")
    if method.meta and config.batch < 2:
        raise ConfigError(
            f"the method '{config.method}' needs at least 2 images of each domain, not 1.",
            "Batch norm in the pooled branch cannot normalise a single value; use '--batch 2'.",
        )
    if config.compute.compile and config.compute.recompute:
        raise ConfigError(
            "compute.compile contradicts compute.recompute: torch cannot compile recomputed "
            "activations.",
            "Set one of them to false.",
        )
    _require_recordable(config.compute)
    if config.model.num_classes != len(CLASSES):
        raise ConfigError(
            f"model.num_classes is {config.model.num_classes}, but prepared labels have the "
            f"{len(CLASSES)} classes of Cityscapes."
        )
    if wanted:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"memory": None})})


def _require_recordable(compute: ComputeConfig) -> None:
    """Raise ConfigError for settings that need the host within an iteration: no CUDA graph can."""
    obstacles = {
        "compute.precision=fp16": compute.precision == "fp16",
        "compute.recompute": bool(compute.recompute),
        "several processes": started_by_torchrun(),
    }
    for name in (name for name, there in obstacles.items() if there and compute.graph):
        raise ConfigError(
            f"compute.graph contradicts {name}: the host has to act within an iteration.",
            "Set 'compute.graph' to false.",
        )
