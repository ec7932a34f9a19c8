"""Labels stored as images."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pinmem_core.data.label_maps import LabelMap
from pinmem_core.label_files import read_colors, read_ids, read_rgb16


def read_values(path: Path, label_map: LabelMap, image: Path | None = None) -> NDArray[Any]:
    """Return the (H, W) ids of an image, or its (H, W, 3) colours if the label map has colours."""
    return read_colors(path) if label_map.of_colors else read_ids(path)


def read_ids16(path: Path, label_map: LabelMap, image: Path | None = None) -> NDArray[Any]:
    """Return the (H, W) ids in the first channel of a 16-bit RGB PNG (SYNTHIA's README)."""
    return read_rgb16(path)[..., 0]


ENCODINGS = {"ids": read_values, "colors": read_values, "ids16": read_ids16}
