"""The network: backbone, decoder, auxiliary head and categorical memory."""

from pinmem_core.checkpoints.checkpoint import save_checkpoint
from pinmem_core.models.segmenter import PRECISIONS, Segmenter, SegmenterOutput, load_checkpoint

__all__ = [
    "PRECISIONS",
    "Segmenter",
    "SegmenterOutput",
    "load_checkpoint",
    "save_checkpoint",
]
