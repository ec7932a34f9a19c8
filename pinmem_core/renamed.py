"""Mapping from the names of format version 1 to the current names.

It applies to checkpoints, snapshots and run configurations of version 1, and explains old keys in
`--set`.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

KEYS: Mapping[str, str] = {
    "model.trunk": "model.backbone",
    "model.head": "model.decoder",
    "model.own_statistics": "model.test_time_bn",
    "tensorboard": "logger=tensorboard",
}
"""Current configuration keys by their names in version 1."""
_TENSORS = {"trunk.": "backbone.", "head.": "decoder."}  # prefixes of tensor names


def current_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return `settings` of a run with current keys."""
    result = dict(settings)
    if result.pop("tensorboard", False):
        result["logger"] = ["tensorboard"]
    for old, new in KEYS.items():
        section, _, key = old.rpartition(".")
        values = result.get(section)
        if isinstance(values, Mapping) and key in values:
            name = new.split(".")[1]
            result[section] = {name if k == key else k: v for k, v in values.items()}
    return result


def current_tensors(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return `tensors` with current names; only version 1 has a "trunk"."""
    if not any(name.startswith("trunk.") for name in tensors):
        return dict(tensors)
    return {_current_name(name): tensor for name, tensor in tensors.items()}


def _current_name(name: str) -> str:
    prefix = next((old for old in _TENSORS if name.startswith(old)), "")
    return _TENSORS.get(prefix, "") + name.removeprefix(prefix)
