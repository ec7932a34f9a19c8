"""Readers of zip and tar archives."""

import bz2
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Self, cast

from pinmem_core.errors import DataError, MachineError

BLOCK = 2**20
"""Number of bytes that are read at a time."""
MOST_MEMBERS = 500_000
"""Maximum number of members of an archive."""

FILE = "a file"
FOLDER = "a folder"
ENCRYPTED = "encrypted"
_SPECIAL = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True)
class Member:
    """One entry of an archive."""

    name: str
    """Path in the archive, unchecked."""
    size: int = 0
    """Unpacked size in bytes, according to the archive."""
    kind: str = FILE
    """`FILE`, `FOLDER`, or a description of another type."""


Contents = Generator[tuple[Member, Iterator[bytes]], None, None]
"""Members with their bytes, which must be read, if at all, before the next member."""


class Reader(ABC):
    """Reader of one archive.

    Args:
        archive: Path of the archive.
    """

    def __init__(self, archive: Path) -> None:
        self.archive = archive

    def listing(self) -> Iterator[Member]:
        """Yield the members; none if the archive has no list of them."""
        return iter(())

    @abstractmethod
    def contents(self) -> Contents:
        """Yield the members with their bytes.

        Raises:
            DataError: The archive is damaged.
            UnsupportedError: Another reader may be able to read it.
        """

    def position(self) -> int | None:
        """Return the number of bytes of the archive that have been read, None if unknown."""
        return None


class UnsupportedError(MachineError):
    """An archive that this reader cannot read; another one may."""


def refused(archive: Path, fault: str) -> DataError:
    """Return the error for an archive that is unsafe to unpack."""
    return DataError(
        f"{archive} is not unpacked: {fault}.",
        "Get the archive from its official source again.",
    )


def too_many_members(archive: Path, most: int = MOST_MEMBERS) -> DataError:
    """Return the error for an archive with more than `most` members."""
    return refused(archive, f"it holds more than {most:,} members")


def refused_member(archive: Path, name: str, fault: str) -> DataError:
    """Return the error for a member that is unsafe to unpack."""
    return refused(archive, f"its member {name[:200]!r} {fault}")


def damaged(archive: Path, reason: object) -> DataError:
    """Return the error for an archive that cannot be read to its end."""
    text = str(reason).strip().rstrip(".") or "it ends early"
    return DataError(f"{archive} is damaged or incomplete: {text}.", "Fetch it again.")


@contextmanager
def damage_named(archive: Path) -> Iterator[None]:
    """Convert the errors of Python's readers for a damaged archive to a `DataError`."""
    try:
        yield
    except NotImplementedError as error:
        raise UnsupportedError(
            f"{archive} is packed in a way that Python cannot read: {error}.",
            "Unpack it with 'unzip' or '7z', and name the folder instead.",
        ) from error
    except (
        EOFError,
        OSError,
        ValueError,
        lzma.LZMAError,
        struct.error,
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise damaged(archive, error) from error


def exactly(archive: Path, member: Member, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the bytes of a member, never more than its size.

    Raises:
        DataError: It has more or fewer.
    """
    left = member.size
    for block in blocks:
        left -= len(block)
        if left < 0:
            break
        yield block
    if left:
        amount = "more" if left < 0 else "fewer"
        raise damaged(archive, f"{member.name[:200]!r} has {amount} bytes than it says")


def special_kind(mode: int) -> str | None:
    """Return a description of the type in a Unix mode, None for files and folders."""
    return _SPECIAL.get(stat.S_IFMT(mode))


_ENCRYPTED_FLAG = 0x1
_END = b"PK\x05\x06"  # end of central directory record
_END_64 = b"PK\x06\x06"  # the same for zip64
_LONGEST_END = 22 + 0xFFFF
_IN_ZIP64 = 0xFFFF  # placeholder for a number in the zip64 record
_LARGEST_DIRECTORY = 48 * 2**20  # zipfile reads it into memory; a short name takes 50 bytes


class ZipReader(Reader):
    """Reader of a zip archive, which checks the checksums."""

    def listing(self) -> Iterator[Member]:
        """Yield the members in the central directory."""
        with self._open() as file:
            yield from map(_zip_member, file.infolist())

    def contents(self) -> Contents:
        """Yield the members with their bytes."""
        with self._open() as file:
            for info in file.infolist():
                yield _zip_member(info), self._blocks(file, info)

    @contextmanager
    def _open(self) -> Iterator[zipfile.ZipFile]:
        disk, count, directory = _read_end(self.archive)
        pieces = [self.archive.with_suffix(suffix) for suffix in (".z01", ".Z01")]
        if disk not in (0, _IN_ZIP64) or any(piece.exists() for piece in pieces):
            whole = f"{self.archive.stem}-whole.zip"
            raise DataError(
                f"{self.archive} is the last of several pieces of one archive.",
                f"Join them with 'zip -s 0 {self.archive.name} --out {whole}', and name {whole}.",
            )
        if directory > _LARGEST_DIRECTORY:
            raise too_many_members(self.archive)
        with damage_named(self.archive), zipfile.ZipFile(self.archive) as file:
            listed = len(file.infolist())
            if count not in (_IN_ZIP64, listed % 2**16):
                raise damaged(self.archive, f"it lists {listed} of {count} members")
            yield file

    def _blocks(self, file: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
        with damage_named(self.archive), file.open(info) as stream:
            while block := stream.read(BLOCK):
                yield block


def _zip_member(info: zipfile.ZipInfo) -> Member:
    mode = info.external_attr >> 16
    kind = ENCRYPTED if info.flag_bits & _ENCRYPTED_FLAG else FILE
    if info.orig_filename.endswith(("/", "\\")) or stat.S_ISDIR(mode):
        kind = FOLDER
    return Member(info.orig_filename, info.file_size, special_kind(mode) or kind)


def _read_end(archive: Path) -> tuple[int, int, int]:
    """Read the end of central directory record.

    Returns:
        The number of this disk (0 for an archive of one piece), the number of members, and an upper
        bound of the size in bytes of the central directory.
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


_XZ_MEMORY = 2**28  # xz takes 65 MiB for its best compression; a hostile header claims 4 GiB
_LONGEST_HEADER = 2**20  # tarfile reads names and attributes into memory
_TAR_KINDS = {
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


class TarReader(Reader):
    """Reader of a tar archive, which has no list of its members."""

    _file: BufferedReader | None = None

    def contents(self) -> Contents:
        """Yield the members with their bytes; the compressor's checksum is checked at the end."""
        with self.archive.open("rb") as file, damage_named(self.archive):
            self._file = file
            stream = _decompressed(file)
            with tarfile.open(
                fileobj=stream, mode="r|", bufsize=BLOCK, tarinfo=_StrictTarInfo
            ) as tar:
                while info := tar.next():
                    kind = FILE if info.isfile() else _TAR_KINDS.get(info.type, "a special file")
                    yield Member(info.name, info.size, kind), self._blocks(tar, info)
                    tar.members.clear()  # type: ignore[attr-defined]  # may fill the memory
            while stream.read(BLOCK):
                pass

    def position(self) -> int:
        """Return the number of bytes of the archive that have been read."""
        return self._file.tell() if self._file else 0

    def _blocks(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
        with damage_named(self.archive):
            file = tar.extractfile(info) if info.isfile() else None
            while file and (block := file.read(BLOCK)):
                yield block


def _decompressed(file: BufferedReader) -> IO[bytes]:
    head = file.peek(6)
    if head.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=file))
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)
    return cast("IO[bytes]", _XzFile(file)) if head.startswith(b"\xfd7zXZ") else file


class _XzFile:
    """Decompress xz within `_XZ_MEMORY`; `lzma.LZMAFile` has no limit."""

    def __init__(self, file: BufferedReader) -> None:
        self._blocks = self._decompress(file)

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most `BLOCK`."""
        return next(self._blocks, b"")

    def _decompress(self, file: BufferedReader) -> Iterator[bytes]:
        stream: lzma.LZMADecompressor | None = None
        data = b""
        while data or (stream and not stream.needs_input) or (data := file.read(BLOCK)):
            if stream is None:
                data = data.lstrip(b"\0")  # zeros may separate streams
                if not data:
                    continue
                stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
            if block := stream.decompress(data, BLOCK):
                yield block
            data = b""
            if stream.eof:
                data, stream = stream.unused_data, None
        if stream:
            raise EOFError


class _StrictTarInfo(tarfile.TarInfo):
    """A tar header; unlike with its base class, a damaged one does not end the archive."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Self:
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf) or not buf:  # zeros are the proper end
                raise tarfile.ReadError(str(error)) from error
            raise
        if info.type in _HEADERS and info.size > _LONGEST_HEADER:
            raise tarfile.ReadError("a header is too long")
        return info
