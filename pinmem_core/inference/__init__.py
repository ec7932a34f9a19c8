"""Inference: predict the classes of images and videos."""

from pinmem_core.inference.prediction import Band, Prediction
from pinmem_core.inference.predictor import Predictor, load
from pinmem_core.inference.protocol import Protocol
from pinmem_core.inference.protocols import PROTOCOLS, get_protocol, protocol_of

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
