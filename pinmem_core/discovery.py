"""Finding plug-ins: every module of a package that defines a given name.

Adding a dataset, a backbone, a decoder or a method is adding one file to its package; there is no
list to edit. Tests and users may also append a folder of their own to the package's `__path__`.
"""

import sys
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

from pinmem_core.errors import unknown_name

T = TypeVar("T")


def discover(package: str, attribute: str) -> list[Any]:
    """Return `attribute` of every module in `package` that defines it, ordered by module name."""
    modules = sorted(info.name for info in iter_modules(sys.modules[package].__path__))
    found = (import_module(f"{package}.{name}") for name in modules)
    return [getattr(module, attribute) for module in found if hasattr(module, attribute)]


class Registry(Generic[T]):
    """Things of one kind by name, gathered from a package's modules whenever asked.

    Args:
        kind: What they are called in errors.
        package: Name of the package.
        attribute: What its modules call their tables of names to things.
    """

    def __init__(self, kind: str, package: str, attribute: str) -> None:
        self.kind = kind
        self.package = package
        self.attribute = attribute

    def all(self) -> dict[str, T]:
        """Return everything by name, sorted."""
        tables: list[dict[str, T]] = discover(self.package, self.attribute)
        things = {name: thing for table in tables for name, thing in table.items()}
        return {name: things[name] for name in sorted(things)}

    def get(self, name: str) -> T:
        """Return the thing called `name`.

        Raises:
            ConfigError: There is none; the closest one is suggested.
        """
        known = self.all()
        if name not in known:
            raise unknown_name(self.kind, name, known)
        return known[name]
