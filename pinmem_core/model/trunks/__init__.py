"""Backbones. To add one, add a module here that defines `TRUNKS`, names to constructors.

A constructor takes the output stride and returns a `Trunk` with random weights.
"""

from collections.abc import Callable

from pinmem_core.discovery import Registry
from pinmem_core.model.trunk import Trunk

trunks: Registry[Callable[[int], Trunk]] = Registry("trunk", __name__, "TRUNKS")
