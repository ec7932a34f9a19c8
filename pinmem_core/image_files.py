"""Image files: opening them safely, checking them to the end, turning them upright."""

import warnings
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from pinmem_core.errors import DataError
from pinmem_core.png import check_png

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is read. Pillow knows more; for one of them it would start another program."""
MAX_MEGAPIXELS = 178
"""Pillow refuses larger pictures: a small file may claim any size."""

_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_SIDEWAYS = 5
"""EXIF orientations from this one on swap the sides."""
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What it warns of, a large size or a strange tag, is read all the same or told as an error.
warnings.filterwarnings("ignore", module=r"PIL\.")


def open_image(path: Path, content: bytes | None = None) -> Image.Image:
    """Return the picture at `path`, its header read.

    Args:
        path: The file; only its name, in messages, where there is `content`.
        content: What the file holds, if that is known already.

    Raises:
        DataError: The file is missing, no picture, or larger than `MAX_MEGAPIXELS`.
    """
    try:
        return Image.open(path if content is None else BytesIO(content), formats=_formats())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except UnidentifiedImageError as error:
        size = path.stat().st_size if content is None else len(content)
        raise unreadable(path, error if size else EOFError("it is empty")) from error
    except Exception as error:
        raise unreadable(path, error) from error


@cache
def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the error for a picture that cannot be read because of `error`."""
    hint = "Replace the file by an intact copy, or leave it out."
    match error:
        case UnidentifiedImageError():
            reason = "no picture"
            hint = f"What is read: {', '.join(FORMATS)}. Convert others, or leave the file out."
        case Image.DecompressionBombError():
            reason = f"it claims more than {MAX_MEGAPIXELS} megapixels"
            hint = "Shrink it, or cut it into parts."
        case OSError(strerror=str(reason)):
            pass
        case _:
            reason = str(error) or type(error).__name__
    return DataError(f"{path} cannot be read: {reason}.", hint)


def exif_transpose(picture: Image.Image) -> Image.Image:
    """Return an opened picture with its pixels loaded, turned as its EXIF orientation says.

    Pillow turns a TIFF when it loads the pixels. Of other files, the orientation is taken from the
    header, as `image_size` takes it.
    """
    turn = None if picture.format == "TIFF" else _TO_UPRIGHT.get(_orientation(picture))
    picture.load()
    return picture if turn is None else picture.transpose(turn)


def check_image(path: Path, *, pixels: bool = True) -> None:
    """Read the picture at `path` to its last byte, by the cheapest way that finds damage.

    Of a PNG, checksums and the length of the pixel stream are checked; a JPEG is decoded at an
    eighth of its size.

    Args:
        path: The file.
        pixels: Whether to look at the pixels; False where the file will be decoded anyway.

    Raises:
        DataError: The file is missing, torn, or no picture.
    """
    with open_image(path) as picture:
        try:
            if picture.format == "PNG":
                check_png_file(path, pixels=pixels)
            elif pixels:
                picture.draft("RGB", (max(1, picture.width // 8), max(1, picture.height // 8)))
                picture.load()
        except Exception as error:
            raise unreadable(path, error) from error


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of the upright picture at `path` from its header alone.

    Raises:
        DataError: The file is missing or no picture.
    """
    with open_image(path) as picture:
        width, height = picture.size
        if isinstance(picture, TiffImageFile):  # Pillow has turned this size, not a JPEG's
            width, height = picture.tag_v2[_TIFF_WIDTH], picture.tag_v2[_TIFF_HEIGHT]
        return (height, width) if _orientation(picture) >= _SIDEWAYS else (width, height)


def check_png_file(path: Path, content: bytes | None = None, *, pixels: bool = True) -> None:
    """Check the PNG at `path`, or its `content`, to the last byte.

    Raises:
        Exception: It is damaged.
    """
    with path.open("rb") if content is None else BytesIO(content) as file:
        check_png(file, pixels=pixels)


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation; a picture whose EXIF block is torn stays as it lies."""
    try:
        # A PNG's own method would decode the picture.
        return int(Image.Image.getexif(picture).get(_ORIENTATION, 1))
    except Exception:
        return 1
