"""Output formats of predictions: how they are rendered and written."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.errors import ConfigError, unknown_name
from pinmem_core.label_space import LabelSpace
from pinmem_core.visualize import colorize, legend, overlay

if TYPE_CHECKING:
    from pinmem_core.inference.predictor import Prediction

BAND_PIXELS = 2**20
"""Pixels rendered at once. Large images are rendered in bands of rows, because rendering takes many
bytes per pixel."""
_COMPRESSION = 1
"""PNG compression level. Compared with Pillow's default, an overlay is a sixth larger and takes a
quarter of the time."""


@dataclass(frozen=True)
class OutputFormat:
    """An output format of predictions.

    Attributes:
        field: Field of `Prediction` that the format needs.
        render: Function from image rows (h, W, 3), rows of the field (h, W), and the label space to
            PNG rows (h, W') or (h, W', 3); None for NPZ, which stores the numbers.
        visual: Whether the format is only for viewing. Such frames can be written as a video, whose
            compression is lossy.
        colored: Whether the picture shows the colours of the classes; a legend explains them.
        palette: Whether the PNG has a palette: its values are trainIds, shown in colours.
    """

    field: Literal["train_ids", "confidence", "entropy", "probabilities"]
    render: Callable[[NDArray[np.uint8], NDArray[Any], LabelSpace], NDArray[np.uint8]] | None
    visual: bool = False
    colored: bool = False
    palette: bool = False

    @property
    def suffix(self) -> str:
        """File name suffix of one image in this format."""
        return ".npz" if self.render is None else ".png"


def _gray(
    image: NDArray[np.uint8], share: NDArray[np.float32], space: LabelSpace
) -> NDArray[np.uint8]:
    """Convert values from 0..1 to uint8 gray values, 0..255."""
    return (255 * share).round().clip(0, 255).astype(np.uint8)


def _color(
    image: NDArray[np.uint8], train_ids: NDArray[np.uint8], space: LabelSpace
) -> NDArray[np.uint8]:
    return colorize(train_ids, space)


def _side_by_side(
    image: NDArray[np.uint8], train_ids: NDArray[np.uint8], space: LabelSpace
) -> NDArray[np.uint8]:
    return np.concatenate([image, colorize(train_ids, space)], axis=1)


def _train_ids(
    image: NDArray[np.uint8], train_ids: NDArray[np.uint8], space: LabelSpace
) -> NDArray[np.uint8]:
    return train_ids


def _label_ids(
    image: NDArray[np.uint8], train_ids: NDArray[np.uint8], space: LabelSpace
) -> NDArray[np.uint8]:
    assert space.label_id_table is not None
    return space.label_id_table[train_ids]


FORMATS: dict[str, OutputFormat] = {
    "color": OutputFormat("train_ids", _color, visual=True, colored=True),
    "palette": OutputFormat("train_ids", _train_ids, palette=True),
    "trainid": OutputFormat("train_ids", _train_ids),
    "labelid": OutputFormat("train_ids", _label_ids),
    "overlay": OutputFormat("train_ids", overlay, visual=True, colored=True),
    "side-by-side": OutputFormat("train_ids", _side_by_side, visual=True, colored=True),
    "confidence": OutputFormat("confidence", _gray, visual=True),
    "entropy": OutputFormat("entropy", _gray, visual=True),
    "probabilities": OutputFormat("probabilities", None),
}


def check_formats(names: Iterable[str]) -> list[str]:
    """Return the names of formats without duplicates.

    Raises:
        ConfigError: A format does not exist; the message suggests the closest one.
    """
    formats = list(dict.fromkeys(names))
    for name in formats:
        if name == "beside":
            message = "the format 'beside' is called 'side-by-side' now."
            raise ConfigError(message, "Use '--format side-by-side'.")
        if name not in FORMATS:
            raise unknown_name("format", name, FORMATS)
    return formats


def require_ids(formats: Iterable[str], space: LabelSpace) -> None:
    """Raise ConfigError if a format needs ids that the classes of a label space lack."""
    if "labelid" in formats and not space.label_ids:
        raise ConfigError(
            f"the format 'labelid' needs the ids of a benchmark's own label files, and the classes "
            f"'{space.name}' have none.",
            "Use '--format trainid'.",
        )


def analyze_options(formats: Iterable[str]) -> dict[str, bool]:
    """Return the arguments of `Predictor.analyze` that the formats need."""
    needed = {FORMATS[name].field for name in formats}
    return {field: field in needed for field in ("confidence", "entropy", "probabilities")}


def render(format: str, image: NDArray[np.uint8], prediction: "Prediction") -> NDArray[np.uint8]:
    """Render a prediction; return pixels (H, W') or (H, W', 3).

    Args:
        format: Name of a format that is not NPZ.
        image: RGB image, (H, W, 3).
        prediction: Prediction of the image.
    """
    return np.concatenate(list(_bands(format, image, prediction)))


def _bands(
    format: str, image: NDArray[np.uint8], prediction: "Prediction"
) -> Iterator[NDArray[np.uint8]]:
    """Yield the result of `render` in bands of rows, from top to bottom."""
    paint = FORMATS[format].render
    assert paint is not None
    values = getattr(prediction, FORMATS[format].field)
    height = max(1, BAND_PIXELS // image.shape[1])
    for top in range(0, len(image), height):
        band = slice(top, top + height)
        yield paint(image[band], values[band], prediction.space)


def with_legend(
    pixels: NDArray[np.uint8], train_ids: Iterable[int], space: LabelSpace
) -> NDArray[np.uint8]:
    """Return a coloured picture (H, W, 3) with a legend of the classes `train_ids` below it."""
    return np.concatenate([pixels, legend({*train_ids}, pixels.shape[1], space)])


def class_counts(train_ids: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the number of pixels of each trainId, (256,)."""
    return np.array(Image.fromarray(train_ids).histogram())  # takes no memory, unlike np.bincount


def class_shares(counts: NDArray[np.int64], space: LabelSpace) -> dict[str, float]:
    """Return the share of pixels in 0..1 of each class that occurs, by name.

    Args:
        counts: Number of pixels of each trainId, (256,).
        space: Label space of the trainIds.
    """
    total = max(1, int(counts.sum()))
    named = zip(space.names, counts.tolist(), strict=False)
    return {name: round(count / total, 6) for name, count in named if count}


def write_prediction(
    format: str,
    image: NDArray[np.uint8],
    prediction: "Prediction",
    file: BinaryIO,
    *,
    legend: bool = False,
) -> None:
    """Write a PNG, or an NPZ of `probabilities` (K, H, W) and `classes` (K,), to `file`.

    Args:
        format: Name of the format.
        image: RGB image, (H, W, 3).
        prediction: Prediction of the image.
        file: File to write to.
        legend: Whether to draw a legend of the classes below a PNG.
    """
    if FORMATS[format].render is None:
        assert prediction.probabilities is not None
        classes = np.array(prediction.space.names)
        np.savez(file, probabilities=prediction.probabilities, classes=classes)
        return
    bands = map(Image.fromarray, _bands(format, image, prediction))
    first = next(bands)
    picture = Image.new(first.mode, (first.width, len(image)))  # no second copy of all pixels
    top = 0
    for band in chain([first], bands):
        picture.paste(band, (0, top))
        top += band.height
    if FORMATS[format].palette:
        picture.putpalette(prediction.space.color_table.tobytes())
    if legend:
        present = np.flatnonzero(class_counts(prediction.train_ids)).tolist()
        picture = Image.fromarray(with_legend(np.asarray(picture), present, prediction.space))
    picture.save(file, "PNG", compress_level=_COMPRESSION)
