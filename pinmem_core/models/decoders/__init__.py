"""Decoders. To add one, add a module here with a dict `DECODERS` from names to classes."""

from pinmem_core.models.decoders.base import Decoder
from pinmem_core.registry import Registry

decoders: Registry[type[Decoder]] = Registry("decoder", __name__, "DECODERS", Decoder)
