"""Labels that hold trainIds under the names of files with Cityscapes ids."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pinmem_core.datasets import DatasetCard, Layout
from pinmem_core.datasets.label_maps import STANDARD_MAPS, build_label_map
from pinmem_core.errors import DataError
from pinmem_core.label_space import CLASSES, IGNORE_INDEX
from pinmem_core.preparation.encodings import ENCODINGS
from pinmem_core.preparation.spread import spread

TRAIN_IDS = "trainids"
"""The standard map that reads such labels as what they are."""

_LOOKED_AT = 8
_IDS = build_label_map("cityscapes-ids", STANDARD_MAPS)
_ONLY_IDS = slice(len(CLASSES), 34)
"""Cityscapes ids that are no trainIds: vegetation, sky, cars and all that no street lacks."""


def reads_ids(card: DatasetCard, layout: Layout) -> bool:
    """Return whether the labels of a layout are read as pictures of Cityscapes ids."""
    label_map = card.label_map(layout.label_maps[0])
    return layout.encoding == "ids" and label_map.digest == _IDS.digest


def hold_train_ids(labels: Sequence[Path]) -> bool:
    """Return whether labels hold 255 and no value from 19 to 33, as trainIds do and ids do not.

    A few evenly spread files are read; those that cannot be read count for nothing.
    """
    counts = np.zeros(IGNORE_INDEX + 1, np.int64)
    for path in spread(labels, _LOOKED_AT):
        try:
            pixels = ENCODINGS.get("ids")(path, _IDS)
        except (DataError, ValueError):
            continue  # prepare leaves it out
        if pixels.ndim == 2:
            counts += np.bincount(pixels.ravel(), minlength=len(counts))[: len(counts)]
    return bool(counts[IGNORE_INDEX] and not counts[_ONLY_IDS].any())
