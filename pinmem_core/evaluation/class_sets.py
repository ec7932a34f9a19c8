"""Class sets over which IoU is averaged.

SYNTHIA has no terrain, truck and train, so 16 classes remain; some papers also leave out wall,
fence and pole (13). The IoU of a class always comes from the confusion matrix of all 19 classes: a
truck predicted as car lowers the IoU of car, whether or not truck is averaged.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pinmem_core.errors import unknown_name
from pinmem_core.labels import CLASS_SETS, CLASSES

OCCURRING = "occurring"
"""Name of the set of classes that occur in the ground truth. The other sets are fixed."""

_FIXED: Mapping[str, NDArray[np.bool_]] = {
    str(size): np.isin(np.arange(len(CLASSES)), train_ids) for size, train_ids in CLASS_SETS.items()
}
CLASS_SET_NAMES: tuple[str, ...] = (OCCURRING, *_FIXED)
"""Names of the class sets, the default first: "occurring", "19", "16", "13"."""


def averaged(
    class_set: str, iou: NDArray[np.float64], truth: NDArray[np.floating | np.integer]
) -> NDArray[np.bool_]:
    """Return the mask (..., 19) of the classes that a mean over `class_set` includes.

    A fixed set includes its classes that occur in truth or prediction, as in cityscapesScripts: a
    class that is predicted but does not occur counts as 0.

    Args:
        class_set: Name from `CLASS_SET_NAMES`.
        iou: IoU of each class, (..., 19); NaN for a class in neither truth nor prediction.
        truth: Ground-truth pixels of each class, (..., 19).

    Raises:
        ConfigError: The class set does not exist.
    """
    if class_set == OCCURRING:
        return truth > 0
    if class_set not in _FIXED:
        raise unknown_name("class set", class_set, CLASS_SET_NAMES)
    return _FIXED[class_set] & ~np.isnan(iou)
