"""Pictures on disk: reading them safely, writing them whole."""

import warnings
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from pinmem_core.errors import DataError
from pinmem_core.files import write_whole

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


class Picture(NamedTuple):
    """What a file shows.

    Attributes:
        pixels: (H, W, 3) RGB of its first frame or page.
        frames: How many it has.
    """

    pixels: NDArray[np.uint8]
    frames: int


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return the picture at `path` as (H, W, 3) RGB, as `read_picture` does.

    Raises:
        DataError: The file is missing, torn, or no picture.
    """
    return read_picture(path).pixels


def read_picture(path: Path, content: bytes | None = None) -> Picture:
    """Return the picture at `path` as RGB, upright as its EXIF orientation says.

    Of an animation or several pages, the first. Transparent parts lie on black, which is what
    networks see beyond the border of an image. Of 16 bits the upper 8 are kept. Colour profiles are
    not applied.

    Args:
        path: The file; only its name, in messages, where there is `content`.
        content: What the file holds, if that is known already.

    Raises:
        DataError: The file is missing, torn, no picture, larger than `MAX_MEGAPIXELS`, or of 32-bit
            values.
    """
    with _open(path, content) as picture:
        try:
            picture.load()
            pixels = np.asarray(_turned(_rgb(picture, path), _orientation(picture)))
        except DataError:
            raise
        except Exception as error:  # Pillow raises whatever a torn file makes it stumble over
            raise _unreadable(path, error) from error
        return Picture(pixels, _frames(picture))


def _rgb(picture: Image.Image, path: Path) -> Image.Image:
    if picture.mode.startswith("I;16") or (picture.mode, picture.format) == ("I", "PPM"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise DataError(
            f"{path} cannot be read: it holds 32-bit numbers, and not the range that they lie in.",
            "Convert it to 8 or 16 bits.",
        )
    if picture.has_transparency_data:
        seen = picture.convert("RGBA")
        black = Image.new("RGB", seen.size)
        black.paste(seen, mask=seen.getchannel("A"))
        return black
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _turned(picture: Image.Image, orientation: int) -> Image.Image:
    how = _TO_UPRIGHT.get(orientation)
    return picture if how is None else picture.transpose(how)


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation; a picture whose EXIF block is torn stays as it lies."""
    try:
        # A PNG's own method would decode the picture.
        return int(Image.Image.getexif(picture).get(_ORIENTATION, 1))
    except Exception:
        return 1


def _frames(picture: Image.Image) -> int:
    """Return the number of frames or pages; 1 where a torn file does not tell."""
    try:
        return 1 if picture.format == "MPO" else int(getattr(picture, "n_frames", 1))
    except Exception:
        return 1


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
        except Exception as error:
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
    except Exception as error:
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
        except Exception as error:
            raise _unreadable(path, error) from error


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of the upright picture at `path` from its header alone.

    Raises:
        DataError: The file is missing or no picture.
    """
    with _open(path) as picture:
        width, height = picture.size
        if isinstance(picture, TiffImageFile):  # Pillow has turned this size, not a JPEG's
            width, height = picture.tag_v2[_TIFF_WIDTH], picture.tag_v2[_TIFF_HEIGHT]
        return (height, width) if _orientation(picture) >= _SIDEWAYS else (width, height)


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write (H, W) or (H, W, 3) `pixels` to `path`, whole or not at all.

    Raises:
        MachineError: The folder cannot be written to.
    """
    data = BytesIO()
    Image.fromarray(pixels).save(data, format="PNG")
    write_whole(path, data.getvalue())


def _open(path: Path, content: bytes | None = None) -> Image.Image:
    try:
        return Image.open(path if content is None else BytesIO(content), formats=_formats())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except UnidentifiedImageError as error:
        size = path.stat().st_size if content is None else len(content)
        raise _unreadable(path, error if size else EOFError("it is empty")) from error
    except Exception as error:
        raise _unreadable(path, error) from error


@cache
def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _unreadable(path: Path, error: Exception) -> DataError:
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
