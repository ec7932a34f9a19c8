"""Training methods. To add one, add a module here with a dict `METHODS` from names to classes."""

from pinmem_core.methods.base import Method
from pinmem_core.registry import Registry

methods: Registry[type[Method]] = Registry("method", __name__, "METHODS", Method)
