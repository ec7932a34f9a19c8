"""Tar archives, plain or compressed with gzip, bzip2 or xz."""

import bz2
import gzip
import lzma
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

_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ"
_XZ_MEMORY = 2**28  # xz takes 65 MiB for its best compression; a hostile header claims 4 GiB
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
        """Yield the members with their bytes; the compressor's checksum is checked at the end.

        Raises:
            DataError: The archive is damaged.
        """
        with self.archive.open("rb") as file:
            self._file = file
            yield from tar_contents(self.archive, _decompressed(file))

    def position(self) -> int:
        """Return how many bytes of the file have been read."""
        return self._file.tell() if self._file else 0


def _decompressed(file: BufferedReader) -> Stream:
    head = file.peek(6)
    if head.startswith(_GZIP):
        return gzip.GzipFile(fileobj=file)
    if head.startswith(_BZIP2):
        return bz2.BZ2File(file)
    return _XzStream(file) if head.startswith(_XZ) else file


class _XzStream:
    """Decompresses xz within `_XZ_MEMORY`, which `lzma.LZMAFile` does not offer."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self._stream: lzma.LZMADecompressor | None = None
        self._data = b""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, none at the end."""
        while True:
            if self._stream is None:
                # Streams may follow each other, with zeros in between.
                while not (data := self._data.lstrip(b"\0")):
                    if not self._refill():
                        return b""
                self._data = data
                self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
            elif self._stream.needs_input and not self._data and not self._refill():
                raise EOFError
            block = self._stream.decompress(self._data, size)
            self._data = b""
            if self._stream.eof:
                self._data, self._stream = self._stream.unused_data, None
            if block:
                return block

    def _refill(self) -> bool:
        self._data = self._file.read(BLOCK)
        return bool(self._data)


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
