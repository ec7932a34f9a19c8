"""Names of format version 1 and what they are called now.

Checkpoints, snapshots and run configurations that were written before format version 2 are read
with this mapping. It also explains an old key that a user still types.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

KEYS: Mapping[str, str] = {
    "model.trunk": "model.backbone",
    "model.head": "model.decoder",
    "model.own_statistics": "model.test_time_bn",
}
"""Configuration keys, by their names in version 1."""
_TENSORS = {"trunk.": "backbone.", "head.": "decoder."}
"""Prefixes of tensor names, by their names in version 1."""


def current_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return `settings` of a run with today's keys. Today's keys stay as they are."""
    result = dict(settings)
    for old, new in KEYS.items():
        section, key = old.split(".")
        values = result.get(section)
        if isinstance(values, Mapping) and key in values:
            name = new.split(".")[1]
            result[section] = {name if k == key else k: v for k, v in values.items()}
    return result


def current_tensors(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return `tensors` with today's names. Today's names stay as they are."""
    return {_current(name): tensor for name, tensor in tensors.items()}


def _current(name: str) -> str:
    prefix = next((old for old in _TENSORS if name.startswith(old)), "")
    return _TENSORS.get(prefix, "") + name.removeprefix(prefix)
