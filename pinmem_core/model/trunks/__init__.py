"""Backbones. To add one, add a module here that defines `TRUNKS`, names to constructors.

A constructor takes the output stride and returns a `Trunk`.
"""

import sys
from collections.abc import Callable

from pinmem_core.discovery import discover
from pinmem_core.errors import unknown_name
from pinmem_core.model.trunk import Trunk

__all__ = ["build_trunk", "trunk_names"]


def _constructors() -> dict[str, Callable[[int], Trunk]]:
    tables: list[dict[str, Callable[[int], Trunk]]] = discover(sys.modules[__name__], "TRUNKS")
    return {name: constructor for table in tables for name, constructor in table.items()}


def trunk_names() -> list[str]:
    """Return the names of all trunks, sorted."""
    return sorted(_constructors())


def build_trunk(name: str, output_stride: int) -> Trunk:
    """Return the trunk `name` with random weights.

    Raises:
        ConfigError: No trunk has this name; the closest one is suggested.
    """
    constructors = _constructors()
    if name not in constructors:
        raise unknown_name("trunk", name, constructors)
    return constructors[name](output_stride)
