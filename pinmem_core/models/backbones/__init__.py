"""Backbones. To add one, add a module here with a dict `BACKBONES` from names to constructors.

A constructor takes the output stride, and options by keyword, and returns a `Backbone` with random
weights. A name that ends with `:*` stands for a family; its constructor gets the rest of the name
first.
"""

from collections.abc import Callable

from pinmem_core.models.backbones.base import Backbone
from pinmem_core.registry import Registry

backbones: Registry[Callable[..., Backbone]] = Registry("backbone", __name__, "BACKBONES")
