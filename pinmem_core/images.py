"""Pictures on disk: reading them safely, writing them whole."""

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pinmem_core.errors import DataError
from pinmem_core.files import write_whole


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return the picture at `path` as (H, W, 3) RGB, upright as its EXIF orientation says.

    Raises:
        DataError: The file is missing, torn, or no picture.
    """
    with _open(path) as picture:
        try:
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(path, error) from error


def read_label(path: Path) -> NDArray[np.uint8]:
    """Return an 8-bit label picture as it is stored: (H, W) ids, or (H, W, 3) for RGB.

    Palette pictures give their ids, not their colours.

    Raises:
        DataError: The file is missing, torn, or not an 8-bit label picture.
    """
    with _open(path) as picture:
        if picture.mode not in ("L", "P", "RGB"):
            raise DataError(
                f"{path} is stored as '{picture.mode}', not as 8-bit ids or RGB colours.",
                "Give the label files of the dataset itself, not a rendering of them.",
            )
        try:
            return np.asarray(picture)
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(path, error) from error


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of the upright picture at `path` from its header alone.

    Raises:
        DataError: The file is missing or no picture.
    """
    with _open(path) as picture:
        sideways = picture.getexif().get(0x0112, 1) >= 5  # orientations that swap the sides
        return (picture.height, picture.width) if sideways else picture.size


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write (H, W) or (H, W, 3) `pixels` to `path`, whole or not at all.

    Raises:
        DataError: The folder cannot be written to.
    """
    data = BytesIO()
    Image.fromarray(pixels).save(data, format="PNG")
    write_whole(path, data.getvalue())


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = "no picture" if isinstance(error, UnidentifiedImageError) else str(error)
    return DataError(
        f"{path} cannot be read: {reason}.",
        "Replace the file by an intact copy, or leave it out.",
    )
