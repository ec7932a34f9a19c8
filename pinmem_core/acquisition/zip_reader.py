"""Zip archives."""

import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR

from pinmem_core.acquisition.members import (
    BLOCK,
    ENCRYPTED,
    FILE,
    FOLDER,
    Contents,
    Member,
    Reader,
    UnsupportedError,
    damage_named,
    damaged,
    special_kind,
    too_many_members,
)
from pinmem_core.errors import DataError

_ENCRYPTED_FLAG = 0x1
_END = b"PK\x05\x06"  # begins the record at the end of every zip
_END_64 = b"PK\x06\x06"  # begins the record before it, where numbers take more than 32 bits
_LONGEST_END = 22 + 0xFFFF
_IN_ZIP64 = 0xFFFF  # says that the number stands elsewhere
_LARGEST_DIRECTORY = 48 * 2**20
"""Bytes of the list of members, which is read into memory; a short name takes 50."""


class ZipReader(Reader):
    """Reads a zip archive."""

    def listing(self) -> Iterator[Member]:
        """Yield what the directory at the archive's end lists.

        Raises:
            DataError: The directory is damaged, or the archive is one piece of several.
        """
        with self._open() as file:
            yield from map(_member, file.infolist())

    def contents(self) -> Contents:
        """Yield the members with their bytes; their checksums are checked.

        Raises:
            DataError: The archive is damaged, encrypted, or one piece of several.
            UnsupportedError: It is compressed in a way that Python does not know.
        """
        with self._open() as file:
            for info in file.infolist():
                yield _member(info), self._blocks(file, info)

    @contextmanager
    def _open(self) -> Iterator[zipfile.ZipFile]:
        disk, count, directory = _read_end(self.archive)
        _require_one_piece(self.archive, disk)
        if directory > _LARGEST_DIRECTORY:
            raise too_many_members(self.archive)
        with self._errors_named(), zipfile.ZipFile(self.archive) as file:
            listed = len(file.infolist())
            if count not in (_IN_ZIP64, listed % 2**16):
                raise damaged(self.archive, f"it lists {listed} of {count} members")
            yield file

    def _blocks(self, file: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
        with self._errors_named(), file.open(info) as stream:
            while block := stream.read(BLOCK):
                yield block

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            with damage_named(self.archive):
                yield
        except NotImplementedError as error:
            raise UnsupportedError(
                f"{self.archive} is packed in a way that Python cannot read: {error}.",
                "Unpack it with 'unzip' or '7z', and name the folder instead.",
            ) from error


def _member(info: zipfile.ZipInfo) -> Member:
    return Member(info.orig_filename, info.file_size, _kind(info))


def _kind(info: zipfile.ZipInfo) -> str:
    mode = info.external_attr >> 16
    if special := special_kind(mode):
        return special
    if info.orig_filename.endswith(("/", "\\")) or S_ISDIR(mode):
        return FOLDER
    return ENCRYPTED if info.flag_bits & _ENCRYPTED_FLAG else FILE


def _require_one_piece(archive: Path, disk: int) -> None:
    pieces = [archive.with_suffix(suffix) for suffix in (".z01", ".Z01")]
    if disk not in (0, _IN_ZIP64) or any(piece.exists() for piece in pieces):
        joined = f"{archive.stem}-joined.zip"
        raise DataError(
            f"{archive} is the last of several pieces of one archive.",
            f"Join them with 'zip -s 0 {archive.name} --out {joined}', and name {joined}.",
        )


def _read_end(archive: Path) -> tuple[int, int, int]:
    """Return what the record at the end of a zip says.

    Returns:
        Which of several pieces this is, counted from 0; the number of members; and the bytes that
        the list of the members takes, or an upper bound of them.
    """
    size = archive.stat().st_size
    with archive.open("rb") as file:
        file.seek(max(0, size - _LONGEST_END))
        tail = file.read()
    position = tail.rfind(_END)
    if position < 0 or len(tail) < position + 22:
        raise damaged(archive, "it has no end")
    disk, count, directory = struct.unpack_from("<H4xHI", tail, position + 4)
    if directory == 0xFFFFFFFF or count == _IN_ZIP64:
        end = tail.rfind(_END_64, 0, position)
        if 0 <= end <= position - 56:
            directory = struct.unpack_from("<Q", tail, end + 40)[0]
    return disk, count, min(directory, size)
