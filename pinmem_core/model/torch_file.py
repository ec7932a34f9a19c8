"""Reading what `torch.save` wrote, without running what a pickle may hold."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pinmem_core.errors import DataError

_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),  # the name before NumPy 2
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64")),
]
"""Trainers save a score as NumPy's; rebuilding a number runs no code."""


def read_torch_file(path: Path) -> Any:
    """Return what `torch.save` wrote to `path`: tensors on the CPU, containers and numbers.

    Anything else is refused unread, so no file can run code. Tensors of an archive (torch 1.6 and
    newer) lie in the file itself: a copy is what outlives it.

    Raises:
        DataError: The file is missing, damaged, not of `torch.save`, or asks to run code.
    """
    try:
        mapped = _tensors_can_be_mapped(path)
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise _refusal(path, error) from None


def _tensors_can_be_mapped(path: Path) -> bool:
    """Return whether tensors lie in the file as they are; raise if the archive is damaged."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():  # torch compares no checksums of what it maps
            raise zipfile.BadZipFile(damaged)
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def _refusal(path: Path, error: Exception) -> DataError:
    if isinstance(error, pickle.UnpicklingError) and (
        asked := re.search(r"GLOBAL (\S+)", str(error))
    ):
        return DataError(
            f"{path} is not read: beside tensors it holds '{asked[1]}', which could run code.",
            "Have its author save tensors, numbers and names alone.",
        )
    return DataError(
        f"{path} cannot be read: it is cut short, damaged, or not written by torch.save.",
        "Download or copy it anew, and compare the sizes.",
    )
