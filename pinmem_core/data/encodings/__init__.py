"""Label encodings: readers of label files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pinmem_core.data.label_maps import LabelMap
from pinmem_core.registry import Registry

Decoder = Callable[[Path, LabelMap], NDArray[Any]]

ENCODINGS: Registry[Decoder] = Registry("label encoding", __name__, "ENCODINGS")
