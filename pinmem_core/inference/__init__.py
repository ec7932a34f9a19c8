"""Inference: predict the classes of images and videos."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pinmem_core.inference.loading import load
    from pinmem_core.inference.predictor import Predictor, TiledPredictor
    from pinmem_core.inference.protocols import PROTOCOLS, Protocol, get_protocol, protocol_of

__all__ = [
    "PROTOCOLS",
    "Predictor",
    "Protocol",
    "TiledPredictor",
    "get_protocol",
    "load",
    "protocol_of",
]

_PROTOCOLS = ("PROTOCOLS", "Protocol", "get_protocol", "protocol_of")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: inputs are checked before torch is imported."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module = "protocols" if name in _PROTOCOLS else "loading" if name == "load" else "predictor"
    return getattr(import_module(f"{__name__}.{module}"), name)
