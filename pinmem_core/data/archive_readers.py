"""Readers of zip and tar archives."""

import bz2
import gzip
import lzma
import re
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
from stat import S_ISDIR
from typing import IO, Protocol, Self, cast

from pinmem_core.errors import DataError, MachineError

BLOCK = 2**20
"""Bytes that are read at a time."""

MOST_MEMBERS = 500_000
"""Members that an archive may hold."""

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
    """Its path as the archive tells it."""
    size: int = 0
    """How many bytes it says it has once unpacked."""
    kind: str = FILE
    """`FILE`, `FOLDER`, or in words what else it is."""


Contents = Generator[tuple[Member, Iterator[bytes]], None, None]
"""Members with their bytes, which must be read, if at all, before the next member is asked for."""


class Reader(ABC):
    """Reads one archive.

    Args:
        archive: The file.
    """

    def __init__(self, archive: Path) -> None:
        self.archive = archive

    def listing(self) -> Iterator[Member]:
        """Yield the members beforehand; none where only reading all of it would tell."""
        return iter(())

    @abstractmethod
    def contents(self) -> Contents:
        """Yield the members with their bytes.

        Raises:
            DataError: The archive is damaged.
            UnsupportedError: Another reader may be able to read it.
        """

    def position(self) -> int | None:
        """Return how many bytes of the file have been read, where that is known."""
        return None


class UnsupportedError(MachineError):
    """An archive that this reader cannot read; another one may."""


def refused(archive: Path, fault: str) -> DataError:
    """Return the error for an archive that it would be unsafe to unpack."""
    return DataError(
        f"{archive} is not unpacked: {fault}.",
        "Get the archive from its official source again.",
    )


def too_many_members(archive: Path, most: int = MOST_MEMBERS) -> DataError:
    """Return the error for an archive of more members than any dataset has."""
    return refused(archive, f"it holds more than {most:,} members")


def refused_member(archive: Path, name: str, fault: str) -> DataError:
    """Return the error for the member `name` that it would be unsafe to unpack."""
    return refused(archive, f"its member {name[:200]!r} {fault}")


def damaged(archive: Path, reason: object) -> DataError:
    """Return the error for an archive that cannot be read to its end."""
    text = str(reason).strip().rstrip(".") or "it ends early"
    return DataError(f"{archive} is damaged or incomplete: {text}.", "Fetch it again.")


@contextmanager
def damage_named(archive: Path) -> Iterator[None]:
    """Turn what Python's readers raise over a damaged archive into a `DataError`."""
    try:
        yield
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
    """Yield the bytes of a member, never more than it said it has.

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
    """Return in words what a Unix mode stands for, None for files and folders."""
    return _SPECIAL.get(stat.S_IFMT(mode))


ZIP = "a zip archive"
TAR = "a tar archive"
GZIP = "a gzip archive"
BZIP2 = "a bzip2 archive"
XZ = "an xz archive"
RAR = "a RAR archive"

_SIGNATURES = {
    TAR: rb".{257}ustar",
    ZIP: rb"PK(\x03\x04|\x05\x06|\x07\x08)",
    GZIP: rb"\x1f\x8b",
    RAR: rb"Rar!\x1a\x07",
    "a 7z archive": rb"7z\xbc\xaf\x27\x1c",
    BZIP2: rb"BZh",
    XZ: rb"\xfd7zXZ",
    "a web page": rb"(\xef\xbb\xbf)?\s*<",
}
_MAY_BEGIN_OTHERWISE = (ZIP, TAR)  # behind a program that unpacks them; before there was "ustar"


def require_signature(path: Path, kind: str) -> None:
    """Refuse a file that is something else than its name promises.

    Args:
        path: The file.
        kind: What it should be: one of this module's constants.

    Raises:
        DataError: It cannot be read, is empty, or looks like something else.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}.") from error
    if not head:
        raise DataError(f"{path} is empty.", "Fetch it again.")
    found = _kind_of(head)
    if found == kind or (found is None and kind in _MAY_BEGIN_OTHERWISE):
        return
    beginning = head.lstrip().split(b"\n")[0][:40].decode("ascii", "replace")
    raise DataError(
        f"{path} is not {kind}: it looks like {found or 'something else'} "
        f"(it starts with {beginning!r}).",
        "Fetch it again; where the site gave a page instead, log in or accept its terms first.",
    )


def _kind_of(head: bytes) -> str | None:
    fits = (kind for kind, pattern in _SIGNATURES.items() if re.match(pattern, head, re.DOTALL))
    return next(fits, None)


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
            yield from map(_zip_member, file.infolist())

    def contents(self) -> Contents:
        """Yield the members with their bytes; their checksums are checked.

        Raises:
            DataError: The archive is damaged, encrypted, or one piece of several.
            UnsupportedError: It is compressed in a way that Python does not know.
        """
        with self._open() as file:
            for info in file.infolist():
                yield _zip_member(info), self._blocks(file, info)

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


def _zip_member(info: zipfile.ZipInfo) -> Member:
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
            yield _tar_member(info), _blocks(archive, tar, info)
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


def _tar_member(info: tarfile.TarInfo) -> Member:
    kind = FILE if info.isfile() else _KINDS.get(info.type, "a special file")
    return Member(info.name, info.size, kind)


def _blocks(archive: Path, tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    with damage_named(archive):
        file = tar.extractfile(info) if info.isfile() else None
        while file and (block := file.read(BLOCK)):
            yield block
