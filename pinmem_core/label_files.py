"""Read label files with the exact values that they store.

Image decoders scale grey values of few bits to 0..255, invert some TIFFs, and smooth lossy images.
Each of these changes class ids. The readers below undo the first two and reject lossy files.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from pinmem_core.errors import DataError
from pinmem_core.images import check_image, exif_transpose, open_image, unreadable
from pinmem_core.label_space import CITYSCAPES

_FORMATS = (
    "8- or 16-bit grey, 1- to 8-bit palette or grey, or 8-bit RGB, with an opaque alpha or none"
)
_LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF")
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp", "tiff_sgilog", "tiff_sgilog24")
_LOSSLESS_TIFF = frozenset(
    ("raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "tiff_deflate", "lzma", "zstd")
)
_MAX_VALUES = {
    **dict.fromkeys(("1", "1;I"), 1),
    "L;2": 3,
    "L;4": 15,
    **dict.fromkeys(("L", "LA", "P;1", "P;2", "P;4", "P", "PA"), 255),
    **dict.fromkeys(("RGB", "RGBX", "RGBA", "BGR", "BGRX", "BGRA"), 255),
    **dict.fromkeys(("I;16", "I;16B", "I;16N"), 65535),
}
"""Largest stored value by Pillow's raw mode; other raw modes are not supported."""
_OPAQUE = 255


def read_label(path: Path, *, checked: bool = False) -> NDArray[Any]:
    """Return the stored values of a label file: ids (H, W), or RGB (H, W, 3).

    Palette images yield their ids, not their colours. A palette of greys is ambiguous: it is an
    error unless ids and greys are equal, or the greys are black and white. The EXIF orientation is
    applied, as in `read_image`.

    Args:
        path: The file.
        checked: Whether the file is known to be intact; otherwise it is checked.

    Raises:
        DataError: The file is missing, damaged, lossy, not opaque, or of an unsupported format.
    """
    image, largest, inverted = _read(path, checked=checked)
    if image.mode == "1":
        bits = np.asarray(image).astype(np.uint8)
        return 1 - bits if inverted else bits
    pixels = np.asarray(image)
    if image.mode in ("LA", "PA", "RGBA"):
        pixels = _opaque(pixels, path)
    if image.mode in ("P", "PA"):
        _reject_greys(image, pixels, path)
    stretched = 65535 if pixels.dtype.itemsize > 1 else 255
    if largest < stretched:  # Pillow has rounded value * stretched / largest, which is reversible
        pixels = (pixels.astype(np.int64) * largest + stretched // 2) // stretched
    return pixels if pixels.dtype == np.uint8 else pixels.astype(np.uint16)


def read_ids(path: Path) -> NDArray[Any]:
    """Return the ids (H, W) of a label file, or of the red channel as CARLA stores them.

    Raises:
        DataError: As for `read_label`, or the file holds colours.
    """
    pixels = read_label(path)
    if pixels.ndim == 2:
        return pixels
    red, green, blue = (pixels[..., channel] for channel in range(3))
    if np.array_equal(green, blue) and (np.array_equal(red, green) or not green.any()):
        return np.ascontiguousarray(red)
    raise DataError(
        f"{path} holds RGB colours, not ids.",
        "Give the label map of the card colours, each as 'red,green,blue'.",
    )


def read_colors(path: Path) -> NDArray[np.uint8]:
    """Return the RGB colours (H, W, 3) of a label file, including palette and grey images.

    Raises:
        DataError: As for `read_label`, or the file holds 16-bit ids.
    """
    image, largest, _ = _read(path, checked=False)
    if largest > 255:
        raise DataError(
            f"{path} holds 16-bit ids, not colours.", "Set 'encoding: ids' in the card."
        )
    if image.mode in ("LA", "PA", "RGBA"):
        _opaque(np.asarray(image), path)
    return np.asarray(image.convert("RGB"))


def read_rgb16(path: Path) -> NDArray[np.uint16]:
    """Return the 16-bit RGB PNG at `path`, (H, W, 3).

    Pillow keeps only the high byte of each value. A second pass with swapped bytes yields the low
    byte.

    Raises:
        DataError: The file is missing, damaged, or not a 16-bit RGB PNG.
    """
    high, low = open_image(path), open_image(path)
    with high, low:
        tiles = high.tile if isinstance(high, ImageFile) else []
        if [tile.args for tile in tiles] != ["RGB;16B"]:
            raise DataError(
                f"{path} is not a 16-bit RGB PNG.",
                "Another program may have converted it to 8 bits. Restore it from the archive.",
            )
        check_image(path, label=True)
        low.tile = [tile._replace(args="RGB;16L") for tile in tiles]  # type: ignore[attr-defined]
        try:
            high, low = exif_transpose(high), exif_transpose(low)
            return np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)
        except Exception as error:
            raise unreadable(path, error) from error


def read_train_ids(
    path: Path, *, classes: int = len(CITYSCAPES), checked: bool = False
) -> NDArray[np.uint8]:
    """Return the trainIds (H, W) of a prepared label.

    Args:
        path: The file.
        classes: Number of classes of its label space.
        checked: Whether the file is known to be intact; otherwise it is checked.

    Raises:
        DataError: As for `read_label`, or the file holds values that are neither trainIds nor 255.
    """
    train_ids = read_label(path, checked=checked)
    # In 8 bits, 255 + 1 is 0.
    if train_ids.ndim == 2 and train_ids.dtype == np.uint8:
        if (train_ids + np.uint8(1)).max(initial=0) <= classes:
            return train_ids
        strange = [v for v in np.unique(train_ids).tolist() if classes <= v < 255]
        reason = f"holds values that are not trainIds: {', '.join(map(str, strange[:5]))}"
    else:
        reason = "is not an 8-bit single-channel image"
    raise DataError(f"{path} {reason}.")


def _read(path: Path, *, checked: bool) -> tuple[Image.Image, int, bool]:
    """Return the rotated image, its largest storable value, and whether Pillow inverts it."""
    with open_image(path) as image:
        largest, inverted = _storage(path, image)
        if image.format == "PNG" and not checked:
            check_image(path, label=True)
        try:
            return exif_transpose(image), largest, inverted
        except Exception as error:
            raise unreadable(path, error) from error


def _storage(path: Path, image: Image.Image) -> tuple[int, bool]:
    """Return the largest storable value of a file, and whether Pillow inverts it."""
    compression = image.info.get("compression") if image.format == "TIFF" else "raw"
    webp = image.format == "WEBP" and not _is_lossless_webp(path.read_bytes())
    if image.format in _LOSSY or compression in _LOSSY_TIFF or webp:
        raise DataError(
            f"{path} is compressed lossily ({image.format}), which changes class ids.",
            "Export the labels as PNG from their source. Converting this file does not help.",
        )
    if image.format == "WEBP":
        return 255, False
    tiles = image.tile if isinstance(image, ImageFile) else []
    names = {_raw_name(tile.codec_name, tile.args) for tile in tiles}
    mode, largest = names.pop() if len(names) == 1 else ("", 0)
    areas = [tile.extents or (0, 0, *image.size) for tile in tiles]
    covered = sum((right - left) * (lower - upper) for left, upper, right, lower in areas)
    whole = covered >= image.width * image.height
    if not (largest and whole and compression in _LOSSLESS_TIFF and _has_own_depth(image, tiles)):
        raise DataError(
            f"{path} is stored as {image.format} '{mode or image.mode}', whose values pinmem "
            "cannot read exactly.",
            f"Labels are {_FORMATS}. Convert it to such a PNG without changing its values.",
        )
    if tiles[0].codec_name == "ppm":
        _require_at_most(largest, path, tiles[0].offset, image.width * image.height)
    return largest, mode == "1;I"


def _require_at_most(largest: int, path: Path, offset: int, count: int) -> None:
    """Raise DataError if a PGM stores values above its maximum, which Pillow would clip."""
    values = np.fromfile(path, np.uint8 if largest < 256 else ">u2", count, offset=offset)
    if values.max(initial=0) > largest:
        raise unreadable(path, ValueError(f"it holds values above {largest}, its maximum"))


def _raw_name(codec: str, args: Any) -> tuple[str, int]:
    """Return the raw mode of a tile and its largest storable value."""
    if codec == "gif":
        return "P", 255
    name, *more = (args,) if isinstance(args, str) else args
    if codec in ("ppm", "ppm_plain") and more:
        return name, int(more[0])
    return name, _MAX_VALUES.get(name, 0)


def _has_own_depth(image: Image.Image, tiles: Any) -> bool:
    """Return whether Pillow reads a BMP with its own number of bits per pixel.

    Depending on the palette, Pillow may read 4 bits as 1 or 8.
    """
    if image.format != "BMP" or image.mode not in ("1", "L") or tiles[0].codec_name != "raw":
        return True
    bits = 1 if image.mode == "1" else 8
    return bool(tiles[0].args[1] == (image.width * bits + 31 >> 3) & ~3)


def _is_lossless_webp(content: bytes) -> bool:
    """Return whether all pixels of a WebP are in one lossless chunk."""
    kinds = []
    position = len(b"RIFF0000WEBP")
    while position + 8 <= len(content):
        size = int.from_bytes(content[position + 4 : position + 8], "little")
        kinds.append(content[position : position + 4])
        position += 8 + size + size % 2
    return b"VP8L" in kinds and not {b"VP8 ", b"ALPH", b"ANMF"} & {*kinds}


def _reject_greys(image: Image.Image, pixels: NDArray[np.uint8], path: Path) -> None:
    """Raise DataError if a palette of greys differs from its ids.

    Optimizers turn grey images of few values into such images; the ids are then the greys.
    """
    colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    colours = colours[: int(pixels.max(initial=0)) + 1]
    greys = colours[:, 0]
    if (colours != greys[:, None]).any() or {*greys.tolist()} <= {0, 255}:
        return
    used = np.flatnonzero(np.bincount(pixels.ravel(), minlength=len(greys))[: len(greys)])
    if (greys[used] != used).any() and len({*greys[used].tolist()}) == len(used):
        number = used[greys[used] != used][0]
        raise DataError(
            f"{path} has a palette of greys: the id of a pixel may be its index, e.g. {number}, or "
            f"its grey value, {greys[number]}.",
            "Store the ids as 8-bit grey values, without a palette.",
        )


def _opaque(pixels: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    """Return the pixels without their alpha channel."""
    if (pixels[..., -1] != _OPAQUE).any():
        raise DataError(
            f"{path} has transparent pixels, whose class is unknown.",
            "Store the label without an alpha channel.",
        )
    values = pixels[..., :-1]
    return values[..., 0] if values.shape[-1] == 1 else values
