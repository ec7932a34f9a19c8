"""The file `config.json` of a checkpoint: its content, and the checks when it is read.

Format version 2 renamed the backbone, the decoder and test-time batch norm. Version 1 is read
through the mapping in `renamed`.
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pinmem_core.checkpoints.model_card import BASE, INIT_FROM
from pinmem_core.config import ModelConfig
from pinmem_core.data.transforms import Normalization
from pinmem_core.documents import read_json_object
from pinmem_core.errors import CheckpointError, DataError
from pinmem_core.renamed import current_settings
from pinmem_core.version import __version__

CONFIG = "config.json"
DIGESTS = "sha256"
"""Section of `config.json` with the digests of the weights file and of the section `model`."""
FETCH_AGAIN = "Fetch or copy it again."
FORMAT_VERSION = 2
_READABLE = (1, FORMAT_VERSION)
_LARGEST = 1 << 28
"""Bytes of `config.json`, which records eight for each image that was trained on."""
_SECTIONS = {
    "training": ("sources", "targets"),
    "converted": ("assumed",),
    INIT_FROM: ("sources",),
    BASE: ("tensors",),
    "parameters": (),
}
"""Optional sections of `config.json` that other code reads, and their list fields."""
_NEW = frozenset({"backbone_options", "label_space", "gate", "mask_empty"})
"""Settings of the network that older checkpoints may lack."""
_LATER = _NEW | {"test_time_bn", "attention_temperature", "residual"}
"""Settings of the network that the first checkpoints, which hold no digests, may lack."""


def read_config(folder: Path) -> dict[str, Any]:
    """Return the `config.json` of a checkpoint, with the names of the current format version.

    Raises:
        CheckpointError: The file is missing, damaged or of another format version.
    """
    return current_config(read_written_config(folder))


def read_architecture(folder: Path) -> ModelConfig:
    """Return the architecture of the network in a checkpoint, without its weights.

    Raises:
        CheckpointError: `config.json` is missing, damaged or of another format version.
    """
    return architecture_of(read_config(folder), folder)


def current_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `config.json`, with the names of the current format version."""
    if config["format_version"] == FORMAT_VERSION:
        return config
    config = current_settings(config) | {"format_version": FORMAT_VERSION}
    if "training" in config:
        config["training"] = current_settings(config["training"])
    return config


def read_written_config(folder: Path) -> dict[str, Any]:
    """Return the `config.json` of a checkpoint, with the names that the file uses.

    Raises:
        CheckpointError: The file is missing, damaged or of another format version.
    """
    path = folder / CONFIG
    if not os.path.lexists(path):
        raise absent(folder, CONFIG)
    try:
        config = read_json_object(path, _LARGEST)
    except DataError as error:
        raise CheckpointError(error.message, FETCH_AGAIN) from None
    if "format_version" not in config:
        raise CheckpointError(
            f"{folder} is not a checkpoint of pinmem: its {CONFIG} has no format version."
        )
    version = config["format_version"]
    if type(version) is not int or version not in _READABLE:  # True and 1.0 equal 1
        raise CheckpointError(
            f"the checkpoint {folder} has format version {version!r}; this pinmem ({__version__}) "
            f"reads versions {' and '.join(map(str, _READABLE))}.",
            "Use the version of pinmem that wrote it, or a newer one.",
        )
    for section, lists in _SECTIONS.items():
        content = config.get(section, {})
        if not isinstance(content, dict):
            raise unfit(folder, f"in it, '{section}' is not an object")
        for key in lists:
            if not isinstance(content.get(key, []), list):
                raise unfit(folder, f"in it, '{section}.{key}' is not a list")
    return config


def described_fields(model: ModelConfig, normalization: Normalization) -> dict[str, Any]:
    """Return the fields that every checkpoint has in `config.json`."""
    classes = model.label_space.classes
    return {
        "format_version": FORMAT_VERSION,
        "pinmem_version": __version__,
        "model": model.model_dump(mode="json"),
        "classes": {"names": list(classes), "colors": list(map(list, classes.values()))},
        "preprocessing": {
            "channels": "RGB",
            "range": [0, 1],
            "mean": list(normalization.mean),
            "std": list(normalization.std),
        },
    }


def architecture_of(config: dict[str, Any], folder: Path) -> ModelConfig:
    """Return the architecture in the `config.json` of a checkpoint.

    Raises:
        CheckpointError: A setting is missing or wrong.
    """
    try:
        model = ModelConfig.model_validate(config.get("model"))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["model", *map(str, first["loc"])])
        raise unfit(folder, f"in it, '{key}' is wrong ({first['msg']})") from None
    optional = _LATER if DIGESTS not in config else _NEW
    if missing := _missing_key(config["model"], model.model_dump(mode="json"), optional):
        raise unfit(folder, f"in it, 'model.{missing}' is missing")
    return model


def require_described(config: dict[str, Any], ours: dict[str, Any], folder: Path) -> None:
    """Raise CheckpointError if classes or preprocessing are not those of `described_fields`."""
    for key in ("classes", "preprocessing"):
        if config.get(key, None if DIGESTS in config else ours[key]) != ours[key]:
            raise unfit(folder, f"its '{key}' are not those of this pinmem")


def _missing_key(
    given: Mapping[str, Any], full: Mapping[str, Any], but: Collection[str]
) -> str | None:
    """Return the first dotted key that is missing in `given` and not in `but`, or None."""
    for key, value in full.items():
        if key not in given:
            if key in but:
                continue
            return key
        if isinstance(value, Mapping) and (inner := _missing_key(given[key], value, but)):
            return f"{key}.{inner}"
    return None


def absent(folder: Path, file: str) -> CheckpointError:
    """Return the error of a folder that lacks a file of the checkpoint."""
    return CheckpointError(f"{folder} is not a checkpoint: {file} is missing.")


def unfit(folder: Path, what: str) -> CheckpointError:
    """Return the error of a checkpoint that does not fit its `config.json`; `what` is a clause."""
    return CheckpointError(f"the checkpoint {folder} does not fit its {CONFIG}: {what}.")
