"""The network: backbone, decoder, auxiliary head and categorical memory."""

from pinmem_core.models.checkpoint import load_checkpoint, save_checkpoint
from pinmem_core.models.memory import CategoricalMemory
from pinmem_core.models.segmenter import PRECISIONS, Segmenter, SegmenterOutput

__all__ = [
    "PRECISIONS",
    "CategoricalMemory",
    "Segmenter",
    "SegmenterOutput",
    "load_checkpoint",
    "save_checkpoint",
]
