"""Sheets that compare predictions side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pinmem_core.inference import Predictor
from pinmem_core.painting import beside, caption, colorize, stacked
from pinmem_core.preparation import Sample


def comparison_sheet(
    predictors: Mapping[str, Predictor], samples: Sequence[Sample], tile_width: int = 384
) -> NDArray[np.uint8]:
    """Return an RGB sheet with one row per sample: image, ground truth, and each prediction.

    Args:
        predictors: Predictors by column title.
        samples: Samples, at least one.
        tile_width: Width of each column in pixels.
    """
    rows = [caption(["image", "ground truth", *predictors], tile_width)]
    for sample in samples:
        image, truth = sample.read()
        predicted = [colorize(predictor.predict(image)) for predictor in predictors.values()]
        rows.append(beside([image, colorize(truth), *predicted], tile_width))
    return stacked(rows)
