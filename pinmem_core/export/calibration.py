"""Calibration images for int8 quantization."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pinmem_core.errors import DataError, PinMemError
from pinmem_core.evaluation import load_validation
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.images import read_image
from pinmem_core.inference.sources import find_sources

T = TypeVar("T")

_MOST = 32
"""Maximum number of calibration images."""


def calibration_images(
    text: str | None, sources: Sequence[str], on_event: Listener
) -> Iterator[NDArray[np.uint8]] | None:
    """Return calibration images (H, W, 3) in RGB, or None to calibrate with synthetic scenes.

    Args:
        text: Image, folder or glob pattern; None for the validation images of `sources`.
        sources: Sources that the network was trained on.
        on_event: Callback for the notice that the validation images cannot be loaded.

    Raises:
        DataError: `text` matches no image.
    """
    if text is not None:
        paths = [s.path for s in find_sources([text], on_event=on_event) if not s.is_video]
        if not paths:
            raise DataError(f"{text} matches no image.", "Name images, a folder or a pattern.")
        return (read_image(path) for path in _evenly(paths))
    try:
        targets = load_validation(sources, _MOST, ignore)
    except PinMemError as error:
        on_event(Notice(f"calibrating with synthetic scenes: {error.message}", warning=True))
        return None
    samples = [sample for target in targets for sample in target.samples]
    return (sample.read()[0] for sample in _evenly(samples)) if samples else None


def _evenly(items: Sequence[T]) -> list[T]:
    step = max(1, -(-len(items) // _MOST))
    return list(items[::step])
