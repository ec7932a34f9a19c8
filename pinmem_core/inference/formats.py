"""Output formats of a prediction."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.errors import unknown_name
from pinmem_core.inference.prediction import Prediction
from pinmem_core.label_space import CLASS_NAMES, LABEL_ID_TABLE
from pinmem_core.visualize import colorize, overlay

Painter = Callable[[NDArray[np.uint8], NDArray[Any]], NDArray[np.uint8]]
"""Function from image rows (h, W, 3) and a part of their prediction (h, W) to the output rows,
(h, W') or (h, W', 3)."""

_PIXELS_AT_ONCE = 2**20
"""Pixels rendered at once. Large images are rendered in bands of rows, because rendering takes many
bytes per pixel."""
_COMPRESSION = 1
"""PNG compression level. Compared with Pillow's default, an overlay is a sixth larger and takes a
quarter of the time."""


@dataclass(frozen=True)
class OutputFormat:
    """An output format of predictions.

    Attributes:
        shows: Field of `Prediction` that the format needs.
        paint: Function that renders the pixels of a PNG; None for NPZ, which stores the numbers.
        is_for_eyes: Whether the format is only for viewing. Such frames can be written as a video,
            whose compression is lossy.
    """

    shows: Literal["train_ids", "confidence", "entropy", "probabilities"]
    paint: Painter | None
    is_for_eyes: bool = False

    @property
    def suffix(self) -> str:
        """File name suffix of one image in this format."""
        return ".npz" if self.paint is None else ".png"


def _grey(image: NDArray[np.uint8], share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Convert values from 0..1 to uint8 grey values, 0..255."""
    return (255 * share).round().clip(0, 255).astype(np.uint8)


def _beside(image: NDArray[np.uint8], train_ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([image, colorize(train_ids)], axis=1)


FORMS: dict[str, OutputFormat] = {
    "color": OutputFormat(
        "train_ids", lambda image, train_ids: colorize(train_ids), is_for_eyes=True
    ),
    "trainid": OutputFormat("train_ids", lambda image, train_ids: train_ids),
    "labelid": OutputFormat("train_ids", lambda image, train_ids: LABEL_ID_TABLE[train_ids]),
    "overlay": OutputFormat("train_ids", overlay, is_for_eyes=True),
    "beside": OutputFormat("train_ids", _beside, is_for_eyes=True),
    "confidence": OutputFormat("confidence", _grey, is_for_eyes=True),
    "entropy": OutputFormat("entropy", _grey, is_for_eyes=True),
    "probabilities": OutputFormat("probabilities", None),
}


def get_formats(names: Iterable[str]) -> dict[str, OutputFormat]:
    """Return the formats by name, without duplicates.

    Raises:
        ConfigError: A format does not exist; the message suggests the closest one.
    """
    for name in names:
        if name not in FORMS:
            raise unknown_name("format", name, FORMS)
    return {name: FORMS[name] for name in names}


def needs(forms: Iterable[OutputFormat]) -> Mapping[str, bool]:
    """Return the arguments of `Predictor.analyze` that `forms` need."""
    shown = {form.shows for form in forms}
    return {part: part in shown for part in ("confidence", "entropy", "probabilities")}


def painted(
    form: OutputFormat, image: NDArray[np.uint8], prediction: Prediction
) -> NDArray[np.uint8]:
    """Render a prediction; return pixels (H, W') or (H, W', 3).

    Args:
        form: Format with a `paint` function.
        image: RGB image, (H, W, 3).
        prediction: Prediction of the image.
    """
    return np.concatenate(list(_painted_bands(form, image, prediction)))


def _painted_bands(
    form: OutputFormat, image: NDArray[np.uint8], prediction: Prediction
) -> Iterator[NDArray[np.uint8]]:
    """Yield the result of `painted` in bands of rows, from top to bottom."""
    assert form.paint is not None
    shown = getattr(prediction, form.shows)
    height = max(1, _PIXELS_AT_ONCE // image.shape[1])
    for top in range(0, len(image), height):
        band = slice(top, top + height)
        yield form.paint(image[band], shown[band])


def _picture(form: OutputFormat, image: NDArray[np.uint8], prediction: Prediction) -> Image.Image:
    """Return the result of `painted` as an image, without a second copy of its pixels."""
    bands = map(Image.fromarray, _painted_bands(form, image, prediction))
    first = next(bands)
    picture = Image.new(first.mode, (first.width, len(image)))
    top = 0
    for band in chain([first], bands):
        picture.paste(band, (0, top))
        top += band.height
    return picture


def write_format(
    form: OutputFormat, image: NDArray[np.uint8], prediction: Prediction, file: BinaryIO
) -> None:
    """Write a PNG, or an NPZ of `probabilities` (K, H, W) and `classes` (K,), to `file`."""
    if form.paint is None:
        assert prediction.probabilities is not None
        classes = np.array(CLASS_NAMES[: len(prediction.probabilities)])
        np.savez(file, probabilities=prediction.probabilities, classes=classes)
    else:
        picture = _picture(form, image, prediction)
        picture.save(file, "PNG", compress_level=_COMPRESSION)
