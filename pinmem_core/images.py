"""Images: reading what they show, writing them whole. `label_files` reads labels."""

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
    """What a file shows.

    Attributes:
        pixels: (H, W, 3) RGB of its first frame or page.
        frames: How many it has.
    """

    pixels: NDArray[np.uint8]
    frames: int


def read_image(path: Path, *, checked: bool = False) -> NDArray[np.uint8]:
    """Return the picture at `path` as (H, W, 3) RGB, as `decode_image` does.

    Raises:
        DataError: The file is missing, torn, or no picture.
    """
    return decode_image(path, checked=checked).pixels


def decode_image(
    path: Path, content: bytes | None = None, *, checked: bool = False
) -> DecodedImage:
    """Return the picture at `path` as RGB, upright as its EXIF orientation says.

    Of an animation or several pages, the first. Transparent parts lie on black, which is what
    networks see beyond the border of an image. Of 16 bits the upper 8 are kept. Colour profiles are
    not applied.

    Args:
        path: The file; only its name, in messages, where there is `content`.
        content: What the file holds, if that is known already.
        checked: Whether `check_image` has found the file intact.

    Raises:
        DataError: The file is missing, torn, no picture, larger than `MAX_MEGAPIXELS`, or of 32-bit
            values.
    """
    with open_image(path, content) as picture:
        try:
            pixels = np.asarray(_rgb(exif_transpose(picture), path))
            if picture.format == "PNG" and not checked and _may_be_short(picture):
                check_png_file(path, content)
        except DataError:
            raise
        except Exception as error:  # Pillow raises whatever a torn file makes it stumble over
            raise unreadable(path, error) from error
        return DecodedImage(pixels, _frames(picture))


def _may_be_short(picture: Image.Image) -> bool:
    """Tell whether rows may be missing in a PNG: Pillow leaves them black."""
    width, height = picture.size
    last_row = picture.crop((0, height - 1, width, height))
    return bool(picture.info.get("interlace")) or last_row.getbbox() is None


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


def _frames(picture: Image.Image) -> int:
    """Return the number of frames or pages; 1 where a torn file does not tell."""
    try:
        return 1 if picture.format == "MPO" else int(getattr(picture, "n_frames", 1))
    except Exception:
        return 1


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write (H, W) or (H, W, 3) `pixels` to `path`, whole or not at all.

    Raises:
        MachineError: The folder cannot be written to.
    """
    data = BytesIO()
    Image.fromarray(pixels).save(data, format="PNG")
    write_atomic(path, data.getvalue())
