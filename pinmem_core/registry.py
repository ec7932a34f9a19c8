"""Discover plug-ins: all modules of a package that define a given name.

A new dataset, backbone, decoder or method is one file in its package. Other folders can be appended
to the package's `__path__`.
"""

import sys
from functools import partial
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar, cast

from pinmem_core.errors import unknown_name

T = TypeVar("T")


def discover(package: str, attribute: str) -> list[Any]:
    """Return `attribute` of every module in `package` that defines it, ordered by module name."""
    modules = sorted(info.name for info in iter_modules(sys.modules[package].__path__))
    loaded = (import_module(f"{package}.{name}") for name in modules)
    return [getattr(module, attribute) for module in loaded if hasattr(module, attribute)]


class Registry(Generic[T]):
    """Plug-ins of one kind by name, collected from the modules of a package at each call.

    Args:
        kind: Kind of plug-in in error messages, e.g. "method".
        package: Name of the package.
        attribute: Name of the dictionary from names to plug-ins in its modules.
    """

    def __init__(self, kind: str, package: str, attribute: str) -> None:
        self.kind = kind
        self.package = package
        self.attribute = attribute

    def all(self) -> dict[str, T]:
        """Return all plug-ins by name, sorted."""
        tables: list[dict[str, T]] = discover(self.package, self.attribute)
        return dict(sorted((name, value) for table in tables for name, value in table.items()))

    def get(self, name: str) -> T:
        """Return the plug-in `name`.

        A family "prefix:*" is called with the rest of the name first.

        Raises:
            ConfigError: The name is unknown; the hint suggests the closest one.
        """
        known = self.all()
        if name in known:
            return known[name]
        prefix, colon, rest = name.partition(":")
        if colon and f"{prefix}:*" in known:
            family: Any = known[f"{prefix}:*"]
            return cast(T, partial(family, rest))
        raise unknown_name(self.kind, name, known)
