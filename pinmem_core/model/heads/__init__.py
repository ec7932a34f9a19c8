"""Segmentation heads. To add one, add a module here that defines `HEADS`, names to classes."""

from pinmem_core.discovery import Registry
from pinmem_core.model.head import Head

heads: Registry[type[Head]] = Registry("head", __name__, "HEADS")
