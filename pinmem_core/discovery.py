"""Finding plug-ins: every module of a package that defines a given name.

Adding a dataset, a trunk, a head or a method is adding one file to its package; there is no list to
edit. Tests and users may also append a folder of their own to the package's `__path__`.
"""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any


def discover(package: ModuleType, attribute: str) -> list[Any]:
    """Return `attribute` of every module in `package` that defines it, ordered by module name."""
    modules = sorted(info.name for info in iter_modules(package.__path__))
    found = (import_module(f"{package.__name__}.{name}") for name in modules)
    return [getattr(module, attribute) for module in found if hasattr(module, attribute)]
