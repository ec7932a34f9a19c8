"""Pictures on disk: reading them safely, writing them whole."""

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

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


def read_rgb16(path: Path) -> NDArray[np.uint16]:
    """Return the 16-bit RGB PNG at `path` as (H, W, 3), all 16 bits of it.

    Pillow, like most readers, keeps the high byte of each value only, and a class id is in the low
    one; reading the file a second time as if its bytes were swapped gives the other half.

    Raises:
        DataError: The file is missing, torn, or not a 16-bit RGB PNG.
    """
    high, low = _open(path), _open(path)
    tiles = high.tile if isinstance(high, ImageFile) else []
    if [tile.args for tile in tiles] != ["RGB;16B"]:
        raise DataError(
            f"{path} is not a 16-bit RGB PNG.",
            "A program that knows 8 bits only has rewritten it: take the file from the archive.",
        )
    low.tile = [tile._replace(args="RGB;16L") for tile in tiles]  # type: ignore[attr-defined]
    try:
        return np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from error


def check_picture(path: Path) -> None:
    """Read the picture at `path` to its last byte, by the cheapest way that finds damage.

    A PNG's chunks carry checksums; a JPEG is decoded, at an eighth of its size.

    Raises:
        DataError: The file is missing, torn, or no picture.
    """
    with _open(path) as picture:
        try:
            if picture.format == "PNG":
                picture.verify()
            else:
                picture.draft("RGB", (max(1, picture.width // 8), max(1, picture.height // 8)))
                picture.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(path, error) from error


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of the upright picture at `path` from its header alone.

    Raises:
        DataError: The file is missing or no picture.
    """
    with _open(path) as picture:
        exif = Image.Image.getexif(picture)  # a PNG's own method would decode the picture
        sideways = exif.get(0x0112, 1) >= 5  # orientations that swap the sides
        return (picture.height, picture.width) if sideways else picture.size


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write (H, W) or (H, W, 3) `pixels` to `path`, whole or not at all.

    Raises:
        MachineError: The folder cannot be written to.
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
