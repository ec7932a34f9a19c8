"""Over which classes IoU is averaged.

A model trained on SYNTHIA has never seen terrain, truck or train (16 classes remain), and some
papers leave out wall, fence and pole, too (13). The IoU of each class is always that of all 19: a
truck that is taken for a car costs the car, whether or not trucks are averaged.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pinmem_core.errors import unknown_name
from pinmem_core.labels import CLASS_SETS, CLASSES

OCCURRING = "occurring"
"""The classes that the truth holds; the others are those of a fixed set."""

_FIXED: Mapping[str, NDArray[np.bool_]] = {
    str(size): np.isin(np.arange(len(CLASSES)), train_ids) for size, train_ids in CLASS_SETS.items()
}
CLASS_SET_NAMES: tuple[str, ...] = (OCCURRING, *_FIXED)
"""The headline's first: "occurring", "19", "16", "13"."""


def averaged(
    class_set: str, iou: NDArray[np.float64], truth: NDArray[np.floating | np.integer]
) -> NDArray[np.bool_]:
    """Tell which classes a mean over `class_set` takes in.

    Of a fixed set, those in truth or prediction, as cityscapesScripts does: a class that is
    predicted, but does not occur, counts as 0 there.

    Args:
        class_set: One of `CLASS_SET_NAMES`.
        iou: (..., 19), NaN for a class in neither truth nor prediction.
        truth: (..., 19) pixels of each class in the truth.

    Raises:
        ConfigError: There is no such set.
    """
    if class_set == OCCURRING:
        return truth > 0
    if class_set not in _FIXED:
        raise unknown_name("class set", class_set, CLASS_SET_NAMES)
    return _FIXED[class_set] & ~np.isnan(iou)
