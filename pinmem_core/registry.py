"""Discover plug-ins: all modules of a package that define a given name.

A new dataset, backbone, decoder or method is one file in its package. Other folders can be appended
to the package's `__path__`.
"""

import sys
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from inspect import isabstract
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, Generic, TypeVar, cast

from pinmem_core.errors import ConfigError, PinMemError, unknown_name

T = TypeVar("T")


def discover(package: str, attribute: str) -> dict[str, Any]:
    """Return `attribute` of every module in `package` that defines it, by file, sorted by module.

    Raises:
        ConfigError: A module cannot be imported, or two have one name.
    """
    folders: dict[str, str] = {}
    for folder in dict.fromkeys(sys.modules[package].__path__):
        for info in iter_modules([folder]):
            if info.name in folders:
                raise ConfigError(
                    f"{folder} and {folders[info.name]} both have a module '{info.name}', and only "
                    "one of them can be imported.",
                    "Rename one of the files.",
                )
            folders[info.name] = folder
    loaded = [_imported(f"{package}.{name}") for name in sorted(folders)]
    return {
        str(module.__file__): getattr(module, attribute)
        for module in loaded
        if hasattr(module, attribute)
    }


def _imported(name: str) -> ModuleType:
    try:
        return import_module(name)
    except PinMemError:
        raise
    except Exception as error:
        spec = find_spec(name)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"the module {spec.origin if spec else name} cannot be imported: {reason}.",
            "Mend it, or move it out of the folder. The option '--debug' shows the line.",
        ) from error


class Registry(Generic[T]):
    """Plug-ins of one kind by name, collected from the modules of a package at each call.

    Args:
        kind: Kind of plug-in in error messages, e.g. "method".
        package: Name of the package.
        attribute: Name of the dictionary from names to plug-ins in its modules.
        base: Class that the plug-ins derive from; None for functions.
    """

    def __init__(
        self, kind: str, package: str, attribute: str, base: type[Any] | None = None
    ) -> None:
        self.kind = kind
        self.package = package
        self.attribute = attribute
        self.base = base

    def all(self) -> dict[str, T]:
        """Return all plug-ins by name, sorted.

        Raises:
            ConfigError: A module cannot be imported, its dictionary holds something else, or a name
                is taken already.
        """
        known: dict[str, T] = {}
        files: dict[str, str] = {}
        for file, table in discover(self.package, self.attribute).items():
            if not (isinstance(table, Mapping) and all(isinstance(name, str) for name in table)):
                raise ConfigError(
                    f"{self.attribute} in {file} is no dictionary with names as keys."
                )
            for name, value in table.items():
                if problem := self._problem(value):
                    raise ConfigError(f"the {self.kind} '{name}' in {file} {problem}.")
                if name in known:
                    raise ConfigError(
                        f"{file} and {files[name]} both define the {self.kind} '{name}'.",
                        "Rename one of them.",
                    )
                known[name], files[name] = value, file
        return dict(sorted(known.items()))

    def _problem(self, value: object) -> str | None:
        """Return what a plug-in lacks, after its name; None if it is complete."""
        if self.base is None:
            return None if callable(value) else "cannot be called"
        if not (isinstance(value, type) and issubclass(value, self.base)):
            return f"is no subclass of {self.base.__name__}"
        missing = [*getattr(value, "__abstractmethods__", ())] if isabstract(value) else []
        missing += [
            name
            for name, kind in self.base.__annotations__.items()
            if "ClassVar" in str(kind) and not hasattr(value, name)
        ]
        return f"lacks {', '.join(sorted(missing))}" if missing else None

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
