"""Learning methods. To add one, add a module here that defines `METHODS`, names to classes."""

import sys

from pinmem_core.discovery import discover
from pinmem_core.errors import unknown_name
from pinmem_core.learning.method import Method

__all__ = ["method_class", "method_names"]


def _methods() -> dict[str, type[Method]]:
    tables: list[dict[str, type[Method]]] = discover(sys.modules[__name__], "METHODS")
    return {name: method for table in tables for name, method in table.items()}


def method_names() -> list[str]:
    """Return the names of all methods, sorted."""
    return sorted(_methods())


def method_class(name: str) -> type[Method]:
    """Return the method `name`.

    Raises:
        ConfigError: No method has this name; the closest one is suggested.
    """
    methods = _methods()
    if name not in methods:
        raise unknown_name("method", name, methods)
    return methods[name]
