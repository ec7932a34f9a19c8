"""Backbones. To add one, add a module here with a dict `BACKBONES` from names to constructors.

A constructor takes the output stride and returns a `Backbone` with random weights.
"""

from collections.abc import Callable

from pinmem_core.discovery import Registry
from pinmem_core.models.backbones.base import Backbone

backbones: Registry[Callable[[int], Backbone]] = Registry("backbone", __name__, "BACKBONES")
