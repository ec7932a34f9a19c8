"""Image files: open, check, decode and write them; `label_files` reads labels."""

import warnings
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from pinmem_core.errors import DataError
from pinmem_core.files import write_atomic
from pinmem_core.png import check_png


class DecodedImage(NamedTuple):
    """A decoded image file.

    Attributes:
        pixels: RGB values of the first frame or page, (H, W, 3).
        frames: Number of frames or pages.
    """

    pixels: NDArray[np.uint8]
    frames: int


def read_image(path: Path, *, checked: bool = False) -> NDArray[np.uint8]:
    """Return the image at `path` as RGB, (H, W, 3); see `decode_image`.

    Raises:
        DataError: The file is missing, damaged, or not an image.
    """
    return decode_image(path, checked=checked).pixels


def decode_image(
    path: Path, content: bytes | None = None, *, checked: bool = False
) -> DecodedImage:
    """Return the image at `path` as RGB, rotated by its EXIF orientation.

    Animations and multi-page files yield the first frame. Transparent pixels are composed onto
    black, the padding of the network. 16-bit values keep the upper 8 bits. Colour profiles are
    ignored.

    Args:
        path: The file; with `content`, only its name in messages.
        content: Bytes of the file; None to read it.
        checked: Whether `check_image` accepted the file.

    Raises:
        DataError: The file is missing, damaged, not an image, larger than `MAX_MEGAPIXELS`, has
            32-bit values, or has 12 bits or fewer in 16-bit values.
    """
    with open_image(path, content) as image:
        deep = _has_16_bits(image)
        try:
            turned = exif_transpose(image)
            pixels = np.asarray(_rgb(turned, path))
            if image.format == "PNG" and not checked and _may_be_short(image):
                check_png_file(path, content)
            if deep and not checked:
                _refuse_low_bits(turned, pixels, path)
        except DataError:
            raise
        except Exception as error:  # Pillow raises many types for damaged files
            raise unreadable(path, error) from error
        return DecodedImage(pixels, _frames(image))


def _may_be_short(image: Image.Image) -> bool:
    """Return whether rows of a PNG may be missing; Pillow fills them with black."""
    width, height = image.size
    last_row = image.crop((0, height - 1, width, height))
    return bool(image.info.get("interlace")) or last_row.getbbox() is None


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    _refuse_32_bits(image, path)
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        black = Image.new("RGB", seen.size)
        black.paste(seen, mask=seen.getchannel("A"))
        return black
    return image if image.mode == "RGB" else image.convert("RGB")


def _refuse_32_bits(image: Image.Image, path: Path) -> None:
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise DataError(
            f"{path} cannot be read: it holds 32-bit values of unknown range.",
            "Convert it to 8 or 16 bits.",
        )


def _has_16_bits(image: Image.Image) -> bool:
    """Return whether a file, whose pixels are not read yet, holds 16-bit values."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    return image.mode.startswith("I") or any("16" in str(tile.args) for tile in tiles)


def _refuse_low_bits(image: Image.Image, pixels: NDArray[np.uint8], path: Path) -> None:
    """Refuse 16-bit values that use the lower 12 bits only: `pixels` of them are nearly black."""
    values = np.asarray(image) if image.mode.startswith("I") else pixels
    if 0 < values.max(initial=0) < (16 if values is pixels else 4096):
        raise DataError(
            f"{path} cannot be read: its values use 12 bits or fewer of 16, so it would be nearly "
            "black.",
            "Convert it to 8 bits, or scale its values to 0..65535.",
        )


def _frames(image: Image.Image) -> int:
    """Return the number of frames or pages; 1 if it is unknown."""
    try:
        return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    except Exception:
        return 1


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write `pixels` of shape (H, W) or (H, W, 3) to `path` atomically.

    Raises:
        MachineError: The disk is full, or the folder is not writable.
    """
    data = BytesIO()
    Image.fromarray(pixels).save(data, format="PNG")
    write_atomic(path, data.getvalue())


FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Supported formats: those that Pillow decodes without another program."""
MAX_MEGAPIXELS = 178
"""Size limit of Pillow; a small file may claim any size."""

_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_SIDEWAYS = 5  # this and larger orientations swap width and height
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns of large sizes and unknown tags; both are either harmless or raised as errors.
warnings.filterwarnings("ignore", module=r"PIL\.")


def open_image(path: Path, content: bytes | None = None) -> Image.Image:
    """Open the image at `path` and read its header.

    Args:
        path: The file; with `content`, only its name in messages.
        content: Bytes of the file; None to read it.

    Raises:
        DataError: The file is missing, not an image, or larger than `MAX_MEGAPIXELS`.
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
    """Return the `FORMATS` that the installed Pillow supports."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the `DataError` for an image that cannot be read because of `error`."""
    hint = "Replace the file by an intact copy, or remove it."
    match error:
        case UnidentifiedImageError():
            reason = "it is not a supported image"
            hint = f"Supported: {', '.join(FORMATS)}. Convert the file, or remove it."
        case Image.DecompressionBombError():
            reason = f"it claims more than {MAX_MEGAPIXELS} megapixels"
            hint = "Shrink it, or cut it into parts."
        case OSError(strerror=str(reason)):
            pass
        case _:
            reason = str(error) or type(error).__name__
    return DataError(f"{path} cannot be read: {reason}.", hint)


def exif_transpose(image: Image.Image) -> Image.Image:
    """Load the pixels of an image and rotate them by its EXIF orientation.

    Pillow rotates a TIFF when it loads the pixels. The orientation of other files is read from the
    header, as in `image_size`.
    """
    turn = None if image.format == "TIFF" else _TRANSPOSE.get(_orientation(image))
    image.load()
    return image if turn is None else image.transpose(turn)


def check_image(path: Path, *, pixels: bool = True, label: bool = False) -> None:
    """Check that the image at `path` is intact, without decoding it fully where possible.

    For a PNG, the checksums and the length of the pixel stream are checked. A JPEG is decoded at an
    eighth of its size, and a file with 16-bit values fully.

    Args:
        path: The file.
        pixels: Whether to check the pixels; False if the file will be decoded anyway.
        label: Whether its values are class ids, which may all be small.

    Raises:
        DataError: The file is missing, damaged, or not an image; or not a `label` and `read_image`
            would refuse its values.
    """
    with open_image(path) as image:
        deep = _has_16_bits(image)
        _refuse_32_bits(image, path)
        try:
            if image.format == "PNG":
                check_png_file(path, pixels=pixels)
            elif pixels:
                image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
                image.load()
        except Exception as error:
            raise unreadable(path, error) from error
        if pixels and not label and deep:
            read_image(path)


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of the image at `path` after EXIF rotation, from its header.

    Raises:
        DataError: The file is missing or not an image.
    """
    with open_image(path) as image:
        width, height = image.size
        if isinstance(image, TiffImageFile):  # Pillow swaps the size of a TIFF only
            width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
        return (height, width) if _orientation(image) >= _SIDEWAYS else (width, height)


def check_png_file(path: Path, content: bytes | None = None, *, pixels: bool = True) -> None:
    """Check that the PNG at `path`, or its `content`, is intact.

    Raises:
        Exception: The file is damaged.
    """
    with path.open("rb") if content is None else BytesIO(content) as file:
        check_png(file, pixels=pixels)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 if the EXIF block is damaged."""
    try:
        # The method of PngImageFile would decode the image.
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:
        return 1
