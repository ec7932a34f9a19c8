"""Label files: the numbers that are stored in them, or a refusal.

Readers of images show a picture: they stretch grey values of few bits to 0..255, invert some TIFFs,
and smooth what was stored lossily. A class id that is changed by any of this is another class.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from pinmem_core.errors import DataError
from pinmem_core.image_files import check_image, exif_transpose, open_image, unreadable
from pinmem_core.label_space import CLASSES

_FORMS = (
    "8- or 16-bit grey, 1- to 8-bit palette or grey, or 8-bit RGB, with an opaque alpha or none"
)
_LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF")
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp", "tiff_sgilog", "tiff_sgilog24")
_LOSSLESS_TIFF = frozenset(
    ("raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "tiff_deflate", "lzma", "zstd")
)
_LARGEST = {
    **dict.fromkeys(("1", "1;I"), 1),
    "L;2": 3,
    "L;4": 15,
    **dict.fromkeys(("L", "LA", "P;1", "P;2", "P;4", "P", "PA"), 255),
    **dict.fromkeys(("RGB", "RGBX", "RGBA", "BGR", "BGRX", "BGRA"), 255),
    **dict.fromkeys(("I;16", "I;16B", "I;16N"), 65535),
}
"""The largest number that is stored, by Pillow's name of the form; others are not read."""
_OPAQUE = 255


def read_label(path: Path, *, checked: bool = False) -> NDArray[Any]:
    """Return the numbers that are stored in a label file: (H, W) ids, or (H, W, 3) for RGB.

    Palette pictures give their ids, not their colours; where the colours are greys, either may be
    meant, and the file is refused unless both are the same, or are black and white. The EXIF
    orientation is followed, as `read_image` follows that of the image.

    Args:
        path: The file.
        checked: Whether the file was found intact before; otherwise it is read to its last byte.

    Raises:
        DataError: The file is missing, torn, compressed lossily, of a form whose numbers cannot be
            told, or not opaque.
    """
    picture, largest, inverted = _read(path, checked=checked)
    if picture.mode == "1":
        bits = np.asarray(picture).astype(np.uint8)
        return 1 - bits if inverted else bits
    pixels = np.asarray(picture)
    if picture.mode in ("LA", "PA", "RGBA"):
        pixels = _opaque(pixels, path)
    if picture.mode in ("P", "PA"):
        _refuse_greys(picture, pixels, path)
    stretched = 65535 if pixels.dtype.itemsize > 1 else 255
    if largest < stretched:  # Pillow has rounded value * stretched / largest, which is reversible
        pixels = (pixels.astype(np.int64) * largest + stretched // 2) // stretched
    return pixels if pixels.dtype == np.uint8 else pixels.astype(np.uint16)


def read_ids(path: Path) -> NDArray[Any]:
    """Return the (H, W) ids of a label file; of RGB, where red holds them (as CARLA has it).

    Raises:
        DataError: As `read_label`, or the file holds colours.
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
    """Return the (H, W, 3) RGB colours of a label file, of a palette or grey picture, too.

    Raises:
        DataError: As `read_label`, or the file holds 16-bit ids.
    """
    picture, largest, _ = _read(path, checked=False)
    if largest > 255:
        raise DataError(
            f"{path} holds 16-bit ids, not colours.", "Set 'encoding: ids' in the card."
        )
    if picture.mode in ("LA", "PA", "RGBA"):
        _opaque(np.asarray(picture), path)
    return np.asarray(picture.convert("RGB"))


def read_rgb16(path: Path) -> NDArray[np.uint16]:
    """Return the 16-bit RGB PNG at `path` as (H, W, 3), all 16 bits of it.

    Pillow, like most readers, keeps the high byte of each value only, and a class id is in the low
    one; reading the file a second time as if its bytes were swapped gives the other half.

    Raises:
        DataError: The file is missing, torn, or not a 16-bit RGB PNG.
    """
    high, low = open_image(path), open_image(path)
    with high, low:
        tiles = high.tile if isinstance(high, ImageFile) else []
        if [tile.args for tile in tiles] != ["RGB;16B"]:
            raise DataError(
                f"{path} is not a 16-bit RGB PNG.",
                "A program that knows 8 bits only has rewritten it: take it from the archive.",
            )
        check_image(path)
        low.tile = [tile._replace(args="RGB;16L") for tile in tiles]  # type: ignore[attr-defined]
        try:
            high, low = exif_transpose(high), exif_transpose(low)
            return np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)
        except Exception as error:
            raise unreadable(path, error) from error


def read_train_ids(path: Path, *, checked: bool = False) -> NDArray[np.uint8]:
    """Return the (H, W) trainIds of a prepared label.

    Args:
        path: The file.
        checked: Whether the file was found intact before; otherwise it is read to its last byte.

    Raises:
        DataError: As `read_label`, or the file holds other values than 0..18 and 255.
    """
    train_ids = read_label(path, checked=checked)
    # In 8 bits, 255 + 1 is 0.
    if train_ids.ndim == 2 and train_ids.dtype == np.uint8:
        if (train_ids + np.uint8(1)).max(initial=0) <= len(CLASSES):
            return train_ids
        strange = [v for v in np.unique(train_ids).tolist() if len(CLASSES) <= v < 255]
        reason = f"holds values that are no trainIds: {', '.join(map(str, strange[:5]))}"
    else:
        reason = "is not an 8-bit single-channel picture"
    raise DataError(f"{path} {reason}.")


def _read(path: Path, *, checked: bool) -> tuple[Image.Image, int, bool]:
    """Return an upright picture, the largest number that it stores, and if Pillow inverts it."""
    with open_image(path) as picture:
        largest, inverted = _form(path, picture)
        if picture.format == "PNG" and not checked:
            check_image(path)
        try:
            return exif_transpose(picture), largest, inverted
        except Exception as error:
            raise unreadable(path, error) from error


def _form(path: Path, picture: Image.Image) -> tuple[int, bool]:
    """Return the largest number that a file stores, and if Pillow inverts it."""
    compression = picture.info.get("compression") if picture.format == "TIFF" else "raw"
    webp = picture.format == "WEBP" and not _is_lossless_webp(path.read_bytes())
    if picture.format in _LOSSY or compression in _LOSSY_TIFF or webp:
        raise DataError(
            f"{path} is compressed lossily ({picture.format}), which changes class ids.",
            "Export the labels as PNG from their source; converting this file restores nothing.",
        )
    if picture.format == "WEBP":
        return 255, False
    tiles = picture.tile if isinstance(picture, ImageFile) else []
    names = {_raw_name(tile.codec_name, tile.args) for tile in tiles}
    form, largest = names.pop() if len(names) == 1 else ("", 0)
    areas = [tile.extents or (0, 0, *picture.size) for tile in tiles]
    covered = sum((right - left) * (lower - upper) for left, upper, right, lower in areas)
    whole = covered >= picture.width * picture.height
    if not (largest and whole and compression in _LOSSLESS_TIFF and _as_named(picture, tiles)):
        raise DataError(
            f"{path} is stored as {picture.format} '{form or picture.mode}', whose numbers pinmem "
            "cannot read as they are.",
            f"Labels are {_FORMS}. Convert it to such a PNG without changing its values.",
        )
    if tiles[0].codec_name == "ppm":
        _require_at_most(largest, path, tiles[0].offset, picture.width * picture.height)
    return largest, form == "1;I"


def _require_at_most(largest: int, path: Path, offset: int, count: int) -> None:
    """Raise DataError where a PGM stores values above its largest one, which Pillow would cut."""
    values = np.fromfile(path, np.uint8 if largest < 256 else ">u2", count, offset=offset)
    if values.max(initial=0) > largest:
        raise unreadable(path, ValueError(f"it holds values above {largest}, its largest one"))


def _raw_name(codec: str, args: Any) -> tuple[str, int]:
    """Return Pillow's name of how a tile is stored, and the largest number in it."""
    if codec == "gif":
        return "P", 255
    name, *more = (args,) if isinstance(args, str) else args
    if codec in ("ppm", "ppm_plain") and more:
        return name, int(more[0])
    return name, _LARGEST.get(name, 0)


def _as_named(picture: Image.Image, tiles: Any) -> bool:
    """Tell whether a BMP has as many bits a pixel as Pillow reads it with.

    For the colours of its palette, Pillow takes some of 4 or 8 bits for such of 1 or 8.
    """
    if picture.format != "BMP" or picture.mode not in ("1", "L") or tiles[0].codec_name != "raw":
        return True
    bits = 1 if picture.mode == "1" else 8
    return bool(tiles[0].args[1] == (picture.width * bits + 31 >> 3) & ~3)


def _is_lossless_webp(content: bytes) -> bool:
    """Tell whether all pixels of a WebP lie in one chunk of its lossless kind."""
    kinds = []
    position = len(b"RIFF0000WEBP")
    while position + 8 <= len(content):
        size = int.from_bytes(content[position + 4 : position + 8], "little")
        kinds.append(content[position : position + 4])
        position += 8 + size + size % 2
    return b"VP8L" in kinds and not {b"VP8 ", b"ALPH", b"ANMF"} & {*kinds}


def _refuse_greys(picture: Image.Image, pixels: NDArray[np.uint8], path: Path) -> None:
    """Raise DataError where a palette of greys says other numbers than its ids.

    Programs that make files smaller turn a grey picture of few values into such a one: its ids are
    then the greys.
    """
    colours = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
    colours = colours[: int(pixels.max(initial=0)) + 1]
    greys = colours[:, 0]
    if (colours != greys[:, None]).any() or {*greys.tolist()} <= {0, 255}:
        return
    used = np.flatnonzero(np.bincount(pixels.ravel(), minlength=len(greys))[: len(greys)])
    if (greys[used] != used).any() and len({*greys[used].tolist()}) == len(used):
        number = used[greys[used] != used][0]
        raise DataError(
            f"{path} has a palette of greys: whether the id of a pixel is its number, such as "
            f"{number}, or its grey, {greys[number]}, is not known.",
            "Store the ids as 8-bit grey values, without a palette.",
        )


def _opaque(pixels: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    """Return (H, W) or (H, W, 3) without the alpha channel."""
    if (pixels[..., -1] != _OPAQUE).any():
        raise DataError(
            f"{path} has pixels that are not opaque; whether they count is not known.",
            "Store the label without an alpha channel.",
        )
    values = pixels[..., :-1]
    return values[..., 0] if values.shape[-1] == 1 else values
