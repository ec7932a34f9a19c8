"""Label encodings: readers of label files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pinmem_core.registry import Registry

Decoder = Callable[..., NDArray[Any]]
"""Function of a label file, a `LabelMap`, and the image that the label is of.

It returns the (H, W) raw ids or the (H, W, 3) colours that the label map translates. The label file
may hold the labels of many images.
"""

ENCODINGS: Registry[Decoder] = Registry("label encoding", __name__, "ENCODINGS")
MORE_FILES: Registry[Callable[[Path, Path], list[Path]]] = Registry(
    "label encoding", __name__, "MORE_FILES"
)
"""Functions of a label file and an image: the other files that the label depends on."""
