"""Segmentation heads. To add one, add a module here that defines `HEADS`, names to classes."""

import sys

from pinmem_core.discovery import discover
from pinmem_core.errors import unknown_name
from pinmem_core.model.head import Head

__all__ = ["head_class"]


def head_class(name: str) -> type[Head]:
    """Return the head `name`.

    Raises:
        ConfigError: No head has this name; the closest one is suggested.
    """
    tables: list[dict[str, type[Head]]] = discover(sys.modules[__name__], "HEADS")
    heads = {key: head for table in tables for key, head in table.items()}
    if name not in heads:
        raise unknown_name("head", name, heads)
    return heads[name]
