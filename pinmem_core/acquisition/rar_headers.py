"""The headers of a RAR archive: what its members must turn out to be, whoever unpacks them.

Some readers check no checksums, and take an archive that was cut off between two members for whole.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from pinmem_core.acquisition.members import (
    MOST_MEMBERS,
    damage_named,
    refused,
    too_many_members,
)
from pinmem_core.errors import DataError

_SIGNATURE_4 = b"Rar!\x1a\x07\x00"
_SIGNATURE_5 = b"Rar!\x1a\x07\x01\x00"
_LONGEST_HEADER = 2**21

_MAIN_4, _FILE_4, _SERVICE_4, _END_4 = 0x73, 0x74, 0x7A, 0x7B
_IS_VOLUME_4, _HIDES_NAMES_4 = 0x1, 0x80
_HAS_DATA_4, _IS_LARGE_4, _IS_LOCKED_4 = 0x8000, 0x100, 0x4

_MAIN_5, _FILE_5, _HIDES_NAMES_5, _END_5 = 1, 2, 4, 5
_IS_VOLUME_5 = 0x1
_HAS_EXTRA_5, _HAS_DATA_5, _HAS_TIME_5, _HAS_CRC_5 = 0x1, 0x2, 0x2, 0x4
_LOCK_5 = 1


@dataclass(frozen=True)
class FileHeader:
    """What the archive itself says about one member."""

    size: int
    crc: int | None
    """CRC-32 of its bytes; None where another checksum is kept."""
    encrypted: bool


def read_headers(archive: Path) -> list[FileHeader]:
    """Return the headers of all members, in their order.

    Raises:
        DataError: The archive is cut off, damaged, encrypted, or one volume of several.
    """
    with damage_named(archive), archive.open("rb") as file:
        is_5 = file.read(len(_SIGNATURE_5)) == _SIGNATURE_5
        file.seek(len(_SIGNATURE_5 if is_5 else _SIGNATURE_4))
        walk = _walk_5(archive, file) if is_5 else _walk_4(archive, file)
        headers = list(islice(walk, MOST_MEMBERS + 1))
    if len(headers) > MOST_MEMBERS:
        raise too_many_members(archive)
    return headers


def _walk_4(archive: Path, file: BinaryIO) -> Iterator[FileHeader]:
    """Yield the members' headers of the formats up to 4."""
    kind = None
    while kind != _END_4:
        _, kind, flags, length = struct.unpack("<HBHH", _read(file, 7))
        header = _read(file, length - 7)
        data = struct.unpack_from("<I", header)[0] if flags & _HAS_DATA_4 else 0
        if kind == _MAIN_4:
            _require_plain(archive, flags & _IS_VOLUME_4, flags & _HIDES_NAMES_4)
        if kind in (_FILE_4, _SERVICE_4):
            size, _, crc = struct.unpack_from("<IBI", header, 4)
            if flags & _IS_LARGE_4:
                more_data, more_size = struct.unpack_from("<II", header, 25)
                data, size = data + (more_data << 32), size + (more_size << 32)
            if kind == _FILE_4:
                yield FileHeader(size, crc, bool(flags & _IS_LOCKED_4))
        file.seek(data, os.SEEK_CUR)


def _walk_5(archive: Path, file: BinaryIO) -> Iterator[FileHeader]:
    """Yield the members' headers of format 5."""
    kind = None
    while kind != _END_5:
        _read(file, 4)  # the header's own checksum, which the readers check
        header = BytesIO(_read(file, _number(file)))
        kind, flags = _number(header), _number(header)
        extra = _number(header) if flags & _HAS_EXTRA_5 else 0
        data = _number(header) if flags & _HAS_DATA_5 else 0
        if kind == _MAIN_5:
            _require_plain(archive, _number(header) & _IS_VOLUME_5, False)
        if kind == _HIDES_NAMES_5:
            _require_plain(archive, False, True)
        if kind == _FILE_5:
            yield _file_5(header, extra)
        file.seek(data, os.SEEK_CUR)


def _file_5(header: BinaryIO, extra: int) -> FileHeader:
    flags, size, _ = _number(header), _number(header), _number(header)
    if flags & _HAS_TIME_5:
        _read(header, 4)
    crc = struct.unpack("<I", _read(header, 4))[0] if flags & _HAS_CRC_5 else None
    _, _ = _number(header), _number(header)
    _read(header, _number(header))  # its name
    records = BytesIO(_read(header, extra))
    kinds = set()
    while records.tell() < extra:
        record = BytesIO(_read(records, _number(records)))
        kinds.add(_number(record))
    return FileHeader(size, crc, _LOCK_5 in kinds)


def _require_plain(archive: Path, is_volume: int, hides_names: int) -> None:
    if hides_names:
        raise refused(archive, "it is encrypted")
    if is_volume:
        raise DataError(
            f"{archive} is one of several volumes of one archive.",
            "Unpack them with 'unrar x', and name the folder instead.",
        )


def _read(file: BinaryIO, size: int) -> bytes:
    if not 0 <= size <= _LONGEST_HEADER:
        raise ValueError("a header has an impossible length")
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _number(file: BinaryIO) -> int:
    """Read a number of format 5: seven bits a byte, the lowest first."""
    number = 0
    for shift in range(0, 70, 7):  # what 64 bits take
        byte = _read(file, 1)[0]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number
    raise ValueError("a number in a header does not end")
