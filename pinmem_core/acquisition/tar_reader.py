"""Tar archives, plain or compressed with gzip."""

import gzip
import tarfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Protocol, Self, cast

from pinmem_core.acquisition.members import (
    BLOCK,
    FILE,
    FOLDER,
    Contents,
    Member,
    Reader,
    damage_named,
)

_GZIP = b"\x1f\x8b"
_LONGEST_HEADER = 2**20  # names and attributes are read into memory

_KINDS = {
    tarfile.DIRTYPE: FOLDER,
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
}
_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class Stream(Protocol):
    """Whatever bytes can be read from."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, none at the end."""


class TarReader(Reader):
    """Reads a tar archive from its beginning to its end; it has no list of its members."""

    _file: BufferedReader | None = None

    def contents(self) -> Contents:
        """Yield the members with their bytes; gzip's checksum is checked at the end.

        Raises:
            DataError: The archive is damaged.
        """
        with self.archive.open("rb") as file:
            self._file = file
            compressed = file.peek(2).startswith(_GZIP)
            stream = gzip.GzipFile(fileobj=file) if compressed else file
            yield from tar_contents(self.archive, stream)

    def position(self) -> int:
        """Return how many bytes of the file have been read."""
        return self._file.tell() if self._file else 0


def tar_contents(archive: Path, stream: Stream) -> Contents:
    """Yield the members of a tar archive that comes as a stream, which is read to its end.

    Args:
        archive: The file to name in errors.
        stream: What comes.

    Raises:
        DataError: The stream is damaged.
    """
    file = cast("IO[bytes]", stream)
    with (
        damage_named(archive),
        tarfile.open(fileobj=file, mode="r|", bufsize=BLOCK, tarinfo=_StrictTarInfo) as tar,
    ):
        while info := tar.next():
            yield _member(info), _blocks(archive, tar, info)
            tar.members.clear()  # type: ignore[attr-defined]  # may be more than memory holds
        while stream.read(BLOCK):
            pass


class _StrictTarInfo(tarfile.TarInfo):
    """A header; unlike its parent's, a damaged one is no end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf) or not buf:  # zeros are the proper end
                raise tarfile.ReadError(str(error)) from error
            raise
        if info.type in _HEADERS and info.size > _LONGEST_HEADER:
            raise tarfile.ReadError("a header is too long")
        return info


def _member(info: tarfile.TarInfo) -> Member:
    kind = FILE if info.isfile() else _KINDS.get(info.type, "a special file")
    return Member(info.name, info.size, kind)


def _blocks(archive: Path, tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    with damage_named(archive):
        file = tar.extractfile(info) if info.isfile() else None
        while file and (block := file.read(BLOCK)):
            yield block
