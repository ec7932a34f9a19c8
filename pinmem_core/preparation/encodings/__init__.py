"""How label files are read, one way of encoding a module; found by discovery.

A decoder takes the path of a label file and the label map that will translate it, and returns the
raw values: (H, W) ids, or (H, W, 3) colours. It raises DataError for a file that it cannot read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pinmem_core.discovery import Registry
from pinmem_core.label_space import LabelMap

Decoder = Callable[[Path, LabelMap], NDArray[Any]]

ENCODINGS: Registry[Decoder] = Registry("label encoding", __name__, "ENCODINGS")
