"""Labels stored as pictures: ids, palettes, colours, and ids in 16-bit PNGs."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pinmem_core.images import check_picture, read_label, read_rgb16
from pinmem_core.labels import LabelMap


def read_ids(path: Path, label_map: LabelMap) -> NDArray[Any]:
    """Return (H, W) ids of a grey or palette picture, or (H, W, 3) colours of an RGB one."""
    check_picture(path)  # Pillow decodes a PNG without looking at its checksums
    return read_label(path)


def read_ids16(path: Path, label_map: LabelMap) -> NDArray[Any]:
    """Return the (H, W) ids in the first channel of a 16-bit RGB PNG (SYNTHIA's README)."""
    check_picture(path)
    return read_rgb16(path)[..., 0]


ENCODINGS = {"ids": read_ids, "colors": read_ids, "ids16": read_ids16}
