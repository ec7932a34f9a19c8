"""Loggers of a run. To add one, add a module here with a dict `LOGGERS` from names to classes."""

from pinmem_core.registry import Registry
from pinmem_core.training.loggers.base import Logger

__all__ = ["Logger", "loggers"]

loggers: Registry[type[Logger]] = Registry("logger", __name__, "LOGGERS", Logger)
