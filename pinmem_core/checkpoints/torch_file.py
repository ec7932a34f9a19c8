"""Read files of `torch.save` without running code from the pickle."""

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from pinmem_core.checkpoints.pickle_check import NotWeightsError, OddPickleError, PickleCheck
from pinmem_core.devices import memory_for, ran_out_of_memory
from pinmem_core.errors import DataError

_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),  # the name before NumPy 2
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64")),
]
"""NumPy scalars, which some trainers save; rebuilding a number runs no code."""

_ZIP = b"PK\x03\x04"
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""Magic number of the legacy format, after the protocol of the pickle."""
_LARGEST_PICKLE = 2 * 2**20
_LARGEST_DIRECTORY = 4 * 2**20
"""Maximum bytes of an archive's list of members, enough for 60,000 tensors."""
_LARGEST_GROWTH = 4
_SMALL = 16 * 2**20


def read_torch_file(path: Path) -> Any:
    """Return what `torch.save` wrote to `path`: tensors on the CPU, containers and numbers.

    A file with anything else is rejected before it is unpickled, so no file can run code or take
    far more time or memory than its size. Tensors of an archive (torch 1.6 and newer) are mapped
    from the file.

    Raises:
        DataError: The file is missing, damaged, not of `torch.save`, asks to run code, or would
            unpack to far more than its size.
        MachineError: Memory ran out.
    """
    with memory_for(f"reading {path}"):
        try:
            mapped = _check(path)
            with torch.serialization.safe_globals(_NUMPY_SCALARS):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except NotWeightsError as error:
            raise DataError(
                f"{path} is not read: it {error}.",
                "Have its author save tensors, numbers and names alone.",
            ) from None
        except Exception as error:  # a damaged pickle can raise anything
            if ran_out_of_memory(error):
                raise
            if isinstance(error, OSError):
                raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
            raise DataError(
                f"{path} cannot be read: it is cut short, damaged, or not written by torch.save.",
                "Download or copy it again, and compare the sizes.",
            ) from None


def is_state_dict(value: object) -> TypeGuard[Mapping[str, Tensor]]:
    """Return whether a value is a mapping from names to weights."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and is_weight(weight) for name, weight in value.items()
    )


def is_weight(value: object) -> TypeGuard[Tensor]:
    """Return whether a value is a dense tensor with values."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_meta
        and not value.is_quantized
    )


def _check(path: Path) -> bool:
    """Check a file; return whether its tensors are uncompressed, so that torch can map them."""
    with path.open("rb") as file:
        beginning = file.read(_LARGEST_PICKLE)
    if beginning.startswith(_ZIP):
        return _check_archive(path)
    if beginning[2 : 2 + len(_LEGACY)] != _LEGACY:
        raise OddPickleError
    _check_legacy(beginning, path.stat().st_size)
    return False


def _check_legacy(beginning: bytes, size: int) -> None:
    """Check the pickles of the legacy format, and that their storages follow."""
    stream = io.BytesIO(beginning)
    stream.seek(2 + len(_LEGACY))
    check = PickleCheck(lambda key: size, size)
    try:
        for _ in ("version of the format", "about the machine", "content"):
            check.run(stream)
        stored = check.run(stream)
    except OddPickleError:
        if size > len(beginning) and stream.tell() == len(beginning):
            raise NotWeightsError(_TOO_MANY_OBJECTS) from None
        raise
    if sorted(stored) != sorted(check.storages):
        raise OddPickleError
    if stream.tell() + sum(8 + count for count in check.storages.values()) > size:
        raise OddPickleError


_TOO_MANY_OBJECTS = f"lists more than {_LARGEST_PICKLE >> 20} MiB of objects"


def _check_archive(path: Path) -> bool:
    size = path.stat().st_size
    if _directory_bytes(path) > _LARGEST_DIRECTORY:
        raise NotWeightsError(f"lists more than {_LARGEST_DIRECTORY >> 20} MiB of members")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > _LARGEST_GROWTH * size + _SMALL:
            raise NotWeightsError("would unpack to far more than its size")
        for member in members:
            stored = member.compress_type == zipfile.ZIP_STORED
            if not (stored and member.file_size == member.compress_size) and (
                stored or member.compress_type != zipfile.ZIP_DEFLATED
            ):
                raise zipfile.BadZipFile(member.filename)
        _check_pickle(archive, members, size)
        if damaged := archive.testzip():  # torch compares no checksums of what it maps
            raise zipfile.BadZipFile(damaged)
        return all(member.compress_type == zipfile.ZIP_STORED for member in members)


def _check_pickle(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], size: int) -> None:
    """Check the list of objects of an archive against its members."""
    # torch looks members up without regard to case, below the first one's folder
    sizes = {member.filename.lower(): member.file_size for member in members}
    folder = members[0].filename.partition("/")[0]
    name = f"{folder}/data.pkl"
    if len(sizes) < len(members):
        raise OddPickleError
    if sizes[name.lower()] > _LARGEST_PICKLE:
        raise NotWeightsError(_TOO_MANY_OBJECTS)
    check = PickleCheck(lambda key: sizes[f"{folder}/data/{key}".lower()], size)
    check.run(io.BytesIO(archive.read(name)))


def _directory_bytes(path: Path) -> int:
    """Return the bytes of an archive's list of members, if the archive ends as those of torch."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 98))
        end = file.read()
    if end[-22:-18] != b"PK\x05\x06" or end[-2:] != b"\0\0":
        raise zipfile.BadZipFile
    if end[-42:-38] == b"PK\x06\x07":  # numbers of 64 bits stand before
        return int(struct.unpack("<Q", end[-58:-50])[0])
    return int(struct.unpack("<I", end[-10:-6])[0])
