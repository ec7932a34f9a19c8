"""From what a user has on disk to a prepared dataset: verified pairs with unified labels."""

from pinmem_core.preparation.prepare import draw_missing, prepare
from pinmem_core.preparation.prepared import PreparedDataset, Sample, Selection, matching, select

__all__ = [
    "PreparedDataset",
    "Sample",
    "Selection",
    "draw_missing",
    "matching",
    "prepare",
    "select",
]
