"""Learning methods. To add one, add a module here that defines `METHODS`, names to classes."""

from pinmem_core.discovery import Registry
from pinmem_core.learning.method import Method

methods: Registry[type[Method]] = Registry("method", __name__, "METHODS")
