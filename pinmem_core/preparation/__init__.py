"""From what a user has on disk to a prepared dataset: verified pairs with unified labels."""

from pinmem_core.preparation.obtain import obtain
from pinmem_core.preparation.prepare import draw_missing, prepare, survey
from pinmem_core.preparation.prepared import PreparedDataset, Selection, matching, select
from pinmem_core.preparation.reencoding import Reencoding
from pinmem_core.preparation.samples import Sample, Samples, ids_of

__all__ = [
    "PreparedDataset",
    "Reencoding",
    "Sample",
    "Samples",
    "Selection",
    "draw_missing",
    "ids_of",
    "matching",
    "obtain",
    "prepare",
    "select",
    "survey",
]
