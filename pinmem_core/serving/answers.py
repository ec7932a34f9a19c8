"""Turn an uploaded image into an answer: classes, shares, and masks as PNG."""

from base64 import b64encode
from io import BytesIO
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError
from pydantic import BaseModel

from pinmem_core.errors import DataError
from pinmem_core.images import decode_image, open_image
from pinmem_core.inference.predictor import Prediction, TiledPredictor
from pinmem_core.inference.writers import class_counts, write_prediction
from pinmem_core.png import label_png
from pinmem_core.serving.limits import refusal

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")
"""Formats that are accepted: those that a browser shows."""
_ACCEPTED = (*FORMATS, "MPO")
"""MPO is a JPEG with further pictures behind the first one, as many phones write."""
_UPLOAD = Path("the upload")
"""Name of the image in messages."""


class ClassShare(BaseModel):
    """A class that occurs in an image, and its share of the pixels in 0..1."""

    id: int
    name: str
    color: tuple[int, int, int]
    share: float


class Answer(BaseModel):
    """The answer to an upload; the three pictures are PNG files in base64."""

    model: str
    width: int
    height: int
    seconds: float
    """Time of the prediction, without the time in the queue."""
    classes: list[ClassShare]
    """Classes that occur, the largest first."""
    mask: str
    """Ids of the classes, as grey values."""
    color: str
    """Ids of the classes, as a palette of their colours."""
    confidence: str | None
    """Probability of the predicted class, as grey values: 255 is 1; null if the model has none."""


def answer(
    name: str, predictor: TiledPredictor, content: bytes, megapixels: float
) -> tuple[bytes, str]:
    """Predict an upload; return the answer as JSON, and its media type.

    Args:
        name: Name of the model in the answer.
        predictor: The model.
        content: Bytes of the image file.
        megapixels: Largest image.

    Raises:
        DataError: The upload is not an image of `FORMATS`, or damaged.
        HTTPException: The image is too large.
        MachineError: The memory does not suffice.
    """
    began = perf_counter()
    pixels = _decode(content, megapixels)
    confident = not predictor.classes_only
    prediction = predictor.analyze(pixels, confidence=confident)
    height, width = prediction.train_ids.shape
    result = Answer(
        model=name,
        width=width,
        height=height,
        seconds=round(perf_counter() - began, 3),
        classes=_classes(prediction),
        mask=_base64(label_png(prediction.train_ids)),
        color=_base64(_png("palette", pixels, prediction)),
        confidence=_base64(_png("confidence", pixels, prediction)) if confident else None,
    )
    return result.model_dump_json().encode(), "application/json"


def answer_mask(
    name: str, predictor: TiledPredictor, content: bytes, megapixels: float
) -> tuple[bytes, str]:
    """Predict an upload; return the PNG of class ids, and its media type.

    Arguments and errors are those of `answer`.
    """
    return label_png(predictor.predict(_decode(content, megapixels))), "image/png"


def _decode(content: bytes, megapixels: float) -> NDArray[np.uint8]:
    """Return the RGB pixels (H, W, 3) of an upload; its size is checked before it is decoded."""
    hint = f"Convert it to one of {', '.join(FORMATS)}."
    try:
        opened = open_image(_UPLOAD, content)
    except DataError as error:
        if content and isinstance(error.__cause__, UnidentifiedImageError):
            raise DataError(error.message, hint) from error  # its own hint names other formats
        raise
    with opened as image:
        if image.format not in _ACCEPTED:
            raise DataError(f"an upload in the format {image.format} is not accepted.", hint)
        if image.width * image.height > megapixels * 1e6:
            raise refusal(
                413,
                f"the image has {image.width}x{image.height} pixels; at most {megapixels:g} "
                "megapixels are accepted.",
                "Shrink the image.",
            )
    return decode_image(_UPLOAD, content).pixels


def _classes(prediction: Prediction) -> list[ClassShare]:
    counts = class_counts(prediction.train_ids).tolist()
    total = sum(counts)
    classes = [
        ClassShare(id=number, name=name, color=color, share=round(counts[number] / total, 6))
        for number, (name, color) in enumerate(prediction.space.classes.items())
        if counts[number]
    ]
    return sorted(classes, key=lambda entry: -entry.share)


def _png(format: str, pixels: NDArray[np.uint8], prediction: Prediction) -> bytes:
    file = BytesIO()
    write_prediction(format, pixels, prediction, file)
    return file.getvalue()


def _base64(content: bytes) -> str:
    return b64encode(content).decode("ascii")
