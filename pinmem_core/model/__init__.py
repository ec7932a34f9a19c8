"""The network: trunk, head, auxiliary head and the categorical memory between them."""

from pinmem_core.model.checkpoint import load_checkpoint, save_checkpoint
from pinmem_core.model.memory import CategoricalMemory
from pinmem_core.model.segmenter import PRECISIONS, Segmenter, SegmenterOutput

__all__ = [
    "PRECISIONS",
    "CategoricalMemory",
    "Segmenter",
    "SegmenterOutput",
    "load_checkpoint",
    "save_checkpoint",
]
