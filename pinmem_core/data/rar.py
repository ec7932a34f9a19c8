"""Readers of RAR archives."""

import logging
import os
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from io import BytesIO
from itertools import islice
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from tempfile import TemporaryFile
from types import ModuleType
from typing import IO, Any, BinaryIO, cast

from pinmem_core.data.archive_readers import (
    BLOCK,
    ENCRYPTED,
    FILE,
    FOLDER,
    MOST_MEMBERS,
    Contents,
    Member,
    Reader,
    UnsupportedError,
    damage_named,
    damaged,
    refused,
    special_kind,
    tar_contents,
    too_many_members,
)
from pinmem_core.errors import DataError, MachineError, PinMemError


def failure(archive: Path, reader: str, reason: str) -> PinMemError:
    """Return the error that a reader's complaint stands for."""
    text = reason.replace(f" {archive.absolute()}", "").removeprefix(f"{reader}: ").rstrip(".")
    if re.search("encrypt|password", text, re.IGNORECASE):
        return refused(archive, "it is encrypted")
    if re.search("unavailable|supported|open the file as archive", text, re.IGNORECASE):
        return unsupported(archive, f"{reader} says: {text}")
    return damaged(archive, f"{reader} says: {text}")


def unsupported(archive: Path, reason: str) -> UnsupportedError:
    """Return the error for an archive that a reader is not able to read."""
    return UnsupportedError(
        f"{archive} is of a kind that nothing on this machine reads: {reason}.",
        "Install the tool 'unrar', which reads every kind of RAR archive, and try again.",
    )


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


_RAR5 = b"Rar!\x1a\x07\x01"

logging.getLogger("libarchive").addHandler(logging.NullHandler())  # else its warnings are printed


def libarchive() -> ModuleType | None:
    """Return Python's module for libarchive, None where the system lacks the library."""
    try:
        return import_module("libarchive")
    except (ImportError, OSError, TypeError, AttributeError):
        return None


class LibarchiveReader(Reader):
    """Reads a RAR archive through libarchive.

    Args:
        archive: The file.
        library: The module.
    """

    def __init__(self, archive: Path, library: ModuleType) -> None:
        super().__init__(archive)
        self._library = library

    def listing(self) -> Iterator[Member]:
        """Yield the members that libarchive finds.

        Raises:
            DataError: A header is damaged.
            UnsupportedError: libarchive does not know this kind of RAR.
        """
        with self._open() as entries:
            for entry in entries:
                yield _member(entry)

    def contents(self) -> Contents:
        """Yield the members with their bytes, which may be wrong in a damaged archive.

        Raises:
            DataError: The archive is damaged.
            UnsupportedError: libarchive does not know this kind of RAR.
        """
        with self._open() as entries:
            for entry in entries:
                yield _member(entry), self._blocks(entry)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        with self.archive.open("rb") as file:
            version = "rar5" if file.read(len(_RAR5)) == _RAR5 else "rar"
        path = str(self.archive)
        with (
            self._errors_named(),
            self._library.file_reader(path, format_name=version, filter_name="none") as entries,
        ):
            yield entries

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except self._library.ArchiveError as error:
            raise failure(self.archive, "libarchive", str(error.msg)) from error

    def _blocks(self, entry: Any) -> Iterator[bytes]:
        with self._errors_named():
            yield from entry.get_blocks(BLOCK)


def _member(entry: Any) -> Member:
    name = os.fsdecode(entry.pathname or "")
    if entry.isdir:
        return Member(name, kind=FOLDER)
    kind = special_kind(entry.mode) or ("a hard link" if entry.islnk else FILE)
    return Member(name, entry.size or 0, kind)


_FIELD = re.compile(r" *(\w[\w ]*?) *[:=] (.*)")
_UNIX_SPECIAL = re.compile(r"\b[lbcps][rwxstST-]{9}")

Fields = Mapping[str, str]


@dataclass(frozen=True)
class _Tool:
    """How an installed tool is asked, and what its answers mean."""

    command: str
    listing: tuple[str, ...]
    """Arguments that make it print a block of fields for every member."""
    printing: tuple[str, ...]
    """Arguments that make it print the bytes of all members, one after the other."""
    name: str
    """The field that holds a member's path."""
    member: Callable[[Fields], Member]
    """Makes a member of its fields; its size is what is printed of it."""


def installed_tools(archive: Path) -> list[Reader]:
    """Return a reader for every installed tool that reads RAR archives."""
    return [_ToolReader(archive, tool) for tool in _TOOLS if shutil.which(tool.command)]


def bsdtar_is_installed() -> bool:
    """Whether a `BsdtarReader` could do its work."""
    return shutil.which("bsdtar") is not None


class _ToolReader(Reader):
    """Cuts the bytes that a tool prints into members, as its listing tells their sizes."""

    def __init__(self, archive: Path, tool: _Tool) -> None:
        super().__init__(archive)
        self._tool = tool

    def listing(self) -> Iterator[Member]:
        with _printed(self.archive, self._command(self._tool.listing)) as output:
            text = b"".join(output.blocks(sys.maxsize)).decode(errors="surrogateescape")
        blocks = [_fields(block) for block in text.split("\n\n")]
        with damage_named(self.archive):
            members = [self._tool.member(fields) for fields in blocks if self._tool.name in fields]
        if not members:
            raise unsupported(self.archive, f"{self._tool.command} lists no members")
        return iter(members)

    def contents(self) -> Contents:
        members = self.listing()
        with _printed(self.archive, self._command(self._tool.printing)) as output:
            for member in members:
                blocks = output.blocks(member.size)
                yield member, blocks
                for _ in blocks:  # whatever was not wanted of them
                    pass
            if output.read(1):
                raise damaged(self.archive, f"{self._tool.command} prints more than it lists")

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [self._tool.command, *arguments, "--", str(self.archive.absolute())]


class BsdtarReader(Reader):
    """Lets bsdtar turn the archive into a tar archive, which comes as a stream."""

    def contents(self) -> Contents:
        """Yield the members with their bytes, which may be wrong in a damaged archive.

        Raises:
            DataError: The archive is damaged.
            UnsupportedError: bsdtar does not know this kind of RAR.
        """
        command = ["bsdtar", "-cf", "-", "--format", "pax", f"@{self.archive.absolute()}"]
        with _printed(self.archive, command) as output:
            yield from tar_contents(self.archive, output)


class _Output:
    """What a tool prints; where that ends, the tool's failure becomes an error."""

    def __init__(self, process: Popen[bytes], check: Callable[[], None]) -> None:
        self._stream = cast("IO[bytes]", process.stdout)
        self._check = check

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        if not data:
            self._check()
        return data

    def blocks(self, size: int) -> Iterator[bytes]:
        while size and (block := self.read(min(size, BLOCK))):
            size -= len(block)
            yield block


@contextmanager
def _printed(archive: Path, command: list[str]) -> Iterator[_Output]:
    """Run a tool, which is ended with the block, and yield what it prints."""
    with (
        TemporaryFile() as complaints,
        Popen(command, stdin=DEVNULL, stdout=PIPE, stderr=complaints) as process,
    ):

        def check() -> None:
            if code := process.wait():
                complaints.seek(0)
                lines = complaints.read().decode(errors="replace").strip().splitlines()
                reason = lines[0] if lines else f"it ended with code {code}"
                raise failure(archive, command[0], reason)

        try:
            yield _Output(process, check)
        finally:
            process.kill()


def _fields(block: str) -> Fields:
    matches = (_FIELD.fullmatch(line) for line in block.split("\n"))
    return {match[1]: match[2] for match in matches if match}


def _member_by_unrar(fields: Fields) -> Member:
    known = {"File": FILE, "Directory": FOLDER}
    kind = known.get(fields["Type"], f"a {fields['Type'].lower()}")
    size = int(fields["Size"]) if kind == FILE else 0
    locked = "encrypted" in fields.get("Flags", "")
    return Member(fields["Name"], size, ENCRYPTED if locked else kind)


def _member_by_7z(fields: Fields) -> Member:
    links = ("Symbolic Link", "Hard Link")
    kind = FOLDER if fields.get("Folder") == "+" else FILE
    if _UNIX_SPECIAL.search(fields.get("Attributes", "")) or any(map(fields.get, links)):
        kind = "a link or a device"
    locked = fields.get("Encrypted") == "+"
    return Member(fields["Path"], int(fields.get("Size") or 0), ENCRYPTED if locked else kind)


_UNRAR = _Tool(
    "unrar",
    listing=("lt", "-c-", "-p-"),
    printing=("p", "-inul", "-c-", "-p-"),
    name="Name",
    member=_member_by_unrar,
)
_7ZZ = _Tool(
    "7zz",
    listing=("l", "-slt", "-ba", "-sccUTF-8", "-p-"),
    printing=("x", "-so", "-p-"),
    name="Path",
    member=_member_by_7z,
)
_TOOLS = (_UNRAR, _7ZZ, replace(_7ZZ, command="7z"))


def rar_readers(archive: Path) -> list[Reader]:
    """Return what can read RAR archives on this machine, in the order to try them in.

    Raises:
        DataError: The archive is cut off, damaged, encrypted, or one volume of several.
        MachineError: Nothing on this machine reads RAR archives.
    """
    headers = read_headers(archive)
    readers: list[Reader] = list(installed_tools(archive))
    if library := libarchive():
        readers.insert(0, _CheckedReader(LibarchiveReader(archive, library), headers))
    if bsdtar_is_installed():
        readers.append(_CheckedReader(BsdtarReader(archive), headers))
    if not readers:
        raise MachineError(
            f"{archive} cannot be unpacked: nothing on this machine reads RAR archives.",
            "Install libarchive ('apt install libarchive13' or 'brew install libarchive'), "
            "or the tool 'unrar'.",
        )
    return readers


class _CheckedReader(Reader):
    """Holds what another reader says and gives against the archive's own headers.

    libarchive ignores the checksums of what was stored without compression, and gives nothing for
    members that refer to an equal one.
    """

    def __init__(self, reader: Reader, headers: list[FileHeader]) -> None:
        super().__init__(reader.archive)
        self._reader = reader
        self._headers = headers

    def listing(self) -> Iterator[Member]:
        for member, header in zip(self._reader.listing(), self._headers, strict=False):
            yield self._agreed(member, header)

    def contents(self) -> Contents:
        headers = iter(self._headers)
        with closing(self._reader.contents()) as contents:
            for (member, blocks), header in zip(contents, headers, strict=False):
                yield self._agreed(member, header), self._checked(member, blocks, header)
        if next(headers, None):
            raise damaged(self.archive, "not all of its members can be read")

    def _agreed(self, member: Member, header: FileHeader) -> Member:
        if header.encrypted:
            return replace(member, kind=ENCRYPTED)
        if member.kind == FILE and (member.size != header.size or header.crc is None):
            raise unsupported(self.archive, f"its member {member.name[:200]!r} is not understood")
        return member

    def _checked(
        self, member: Member, blocks: Iterator[bytes], header: FileHeader
    ) -> Iterator[bytes]:
        crc = 0
        for block in blocks:
            crc = zlib.crc32(block, crc)
            yield block
        if crc != header.crc:
            raise damaged(self.archive, f"the checksum of {member.name[:200]!r} is wrong")
