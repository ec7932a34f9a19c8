"""From what a user has on disk to a prepared dataset: verified pairs with unified labels."""

from pinmem_core.preparation.obtain import obtain
from pinmem_core.preparation.prepare import draw_missing, prepare, survey
from pinmem_core.preparation.prepared import PreparedDataset, Sample, Selection, matching, select
from pinmem_core.preparation.reencoding import Reencoding

__all__ = [
    "PreparedDataset",
    "Reencoding",
    "Sample",
    "Selection",
    "draw_missing",
    "matching",
    "obtain",
    "prepare",
    "select",
    "survey",
]
