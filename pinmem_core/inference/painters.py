"""The forms in which a prediction can be written."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.errors import unknown_name
from pinmem_core.inference.prediction import Prediction
from pinmem_core.labels import CLASS_NAMES, LABEL_ID_TABLE
from pinmem_core.painting import colorize, overlay

Painter = Callable[[NDArray[np.uint8], NDArray[Any]], NDArray[np.uint8]]
"""Takes rows (h, W, 3) of an image and what the form shows of them (h, W); gives rows to write,
(h, W') or (h, W', 3)."""

_PIXELS_AT_ONCE = 2**20
"""Large images are painted by bands of rows: painters need many bytes for a pixel."""
_COMPRESSION = 1
"""An overlay takes a sixth more bytes than by Pillow's default, and a quarter of the time."""


@dataclass(frozen=True)
class Form:
    """How a prediction is written.

    Attributes:
        shows: The part of a `Prediction` that is needed.
        paint: Makes the pixels of a PNG; None where the numbers themselves are written, as NPZ.
        is_for_eyes: Small errors do not matter, so that frames of it can become a video.
    """

    shows: Literal["train_ids", "confidence", "entropy", "probabilities"]
    paint: Painter | None
    is_for_eyes: bool = False

    @property
    def suffix(self) -> str:
        """The file name suffix of one image in this form."""
        return ".npz" if self.paint is None else ".png"


def _grey(image: NDArray[np.uint8], share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return shares in 0..1 as 0..255."""
    return (255 * share).round().clip(0, 255).astype(np.uint8)


def _beside(image: NDArray[np.uint8], train_ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([image, colorize(train_ids)], axis=1)


FORMS: dict[str, Form] = {
    "color": Form("train_ids", lambda image, train_ids: colorize(train_ids), is_for_eyes=True),
    "trainid": Form("train_ids", lambda image, train_ids: train_ids),
    "labelid": Form("train_ids", lambda image, train_ids: LABEL_ID_TABLE[train_ids]),
    "overlay": Form("train_ids", overlay, is_for_eyes=True),
    "beside": Form("train_ids", _beside, is_for_eyes=True),
    "confidence": Form("confidence", _grey, is_for_eyes=True),
    "entropy": Form("entropy", _grey, is_for_eyes=True),
    "probabilities": Form("probabilities", None),
}


def get_forms(names: Iterable[str]) -> dict[str, Form]:
    """Return the forms called `names`, each once.

    Raises:
        ConfigError: There is no such form; the closest one is suggested.
    """
    for name in names:
        if name not in FORMS:
            raise unknown_name("format", name, FORMS)
    return {name: FORMS[name] for name in names}


def needs(forms: Iterable[Form]) -> Mapping[str, bool]:
    """Return the arguments of `Predictor.analyze` for what `forms` show."""
    shown = {form.shows for form in forms}
    return {part: part in shown for part in ("confidence", "entropy", "probabilities")}


def painted(form: Form, image: NDArray[np.uint8], prediction: Prediction) -> NDArray[np.uint8]:
    """Return the pixels (H, W') or (H, W', 3) of a form that has a painter.

    Args:
        form: The form.
        image: (H, W, 3) RGB.
        prediction: What the network says of it.
    """
    return np.concatenate(list(_painted_bands(form, image, prediction)))


def _painted_bands(
    form: Form, image: NDArray[np.uint8], prediction: Prediction
) -> Iterator[NDArray[np.uint8]]:
    """Yield what `painted` returns in bands of rows, from top to bottom."""
    assert form.paint is not None
    shown = getattr(prediction, form.shows)
    height = max(1, _PIXELS_AT_ONCE // image.shape[1])
    for top in range(0, len(image), height):
        band = slice(top, top + height)
        yield form.paint(image[band], shown[band])


def _picture(form: Form, image: NDArray[np.uint8], prediction: Prediction) -> Image.Image:
    """Return what `painted` does; a panorama's pixels are not held a second time."""
    bands = map(Image.fromarray, _painted_bands(form, image, prediction))
    first = next(bands)
    picture = Image.new(first.mode, (first.width, len(image)))
    top = 0
    for band in chain([first], bands):
        picture.paste(band, (0, top))
        top += band.height
    return picture


def write_form(
    form: Form, image: NDArray[np.uint8], prediction: Prediction, file: BinaryIO
) -> None:
    """Write a PNG, or an NPZ of `probabilities` (K, H, W) and `classes` (K,), to `file`."""
    if form.paint is None:
        assert prediction.probabilities is not None
        classes = np.array(CLASS_NAMES[: len(prediction.probabilities)])
        np.savez(file, probabilities=prediction.probabilities, classes=classes)
    else:
        picture = _picture(form, image, prediction)
        picture.save(file, "PNG", compress_level=_COMPRESSION)
