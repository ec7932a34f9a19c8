"""Read images as RGB arrays and write PNG files; `label_files` reads labels."""

from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.errors import DataError
from pinmem_core.files import write_atomic
from pinmem_core.image_files import (
    FORMATS,
    MAX_MEGAPIXELS,
    check_image,
    check_png_file,
    exif_transpose,
    image_size,
    open_image,
    unreadable,
)
from pinmem_core.label_files import (
    read_colors,
    read_ids,
    read_label,
    read_rgb16,
    read_train_ids,
)

__all__ = [
    "FORMATS",
    "MAX_MEGAPIXELS",
    "DecodedImage",
    "check_image",
    "decode_image",
    "image_size",
    "read_colors",
    "read_ids",
    "read_image",
    "read_label",
    "read_rgb16",
    "read_train_ids",
    "write_png",
]


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
        DataError: The file is missing, damaged, not an image, larger than `MAX_MEGAPIXELS`, or has
            32-bit values.
    """
    with open_image(path, content) as image:
        try:
            pixels = np.asarray(_rgb(exif_transpose(image), path))
            if image.format == "PNG" and not checked and _may_be_short(image):
                check_png_file(path, content)
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
    if image.mode in ("I", "F"):
        raise DataError(
            f"{path} cannot be read: it holds 32-bit values of unknown range.",
            "Convert it to 8 or 16 bits.",
        )
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        black = Image.new("RGB", seen.size)
        black.paste(seen, mask=seen.getchannel("A"))
        return black
    return image if image.mode == "RGB" else image.convert("RGB")


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
