"""Inference: predict the classes of images and videos."""

from pinmem_core.inference.predictor import Band, Prediction, Predictor, load
from pinmem_core.inference.protocols import PROTOCOLS, Protocol, get_protocol, protocol_of

__all__ = [
    "PROTOCOLS",
    "Band",
    "Prediction",
    "Predictor",
    "Protocol",
    "get_protocol",
    "load",
    "protocol_of",
]
