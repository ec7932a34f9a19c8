"""RAR archives: rarfile reads their headers; libarchive or an installed tool decompresses them.

What is decompressed is compared with the sizes and checksums of the headers, because libarchive
does not check members that are stored without compression.
"""

import logging
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from tempfile import TemporaryFile
from types import ModuleType
from typing import IO, Any, cast

import rarfile

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
    too_many_members,
)
from pinmem_core.errors import DataError, MachineError, PinMemError

_TOOLS = {
    "unrar": ("p", "-inul", "-c-", "-p-"),
    "7zz": ("x", "-so", "-p-"),
    "7z": ("x", "-so", "-p-"),
    "bsdtar": ("-xOf",),
}
"""Arguments that make a tool print the bytes of all files, one after the other."""
_COPY = 5  # rarfile's code of a member that refers to an equal one
_LINKS = {1: "a symbolic link", 2: "a symbolic link", 3: "a symbolic link", 4: "a hard link"}

logging.getLogger("libarchive").addHandler(logging.NullHandler())  # else its warnings are printed


@dataclass(frozen=True)
class RarMember(Member):
    """A member, and the CRC-32 of its bytes; None where another checksum is kept."""

    crc: int | None = None


def rar_readers(archive: Path) -> list[Reader]:
    """Return what can read RAR archives on this machine, in the order to try them in.

    Raises:
        DataError: The archive is cut off, damaged, encrypted, or one volume of several.
        MachineError: Nothing on this machine reads RAR archives.
    """
    members = _read_members(archive)
    sources: list[Callable[..., Contents]] = []
    if library := libarchive():
        sources.append(partial(_from_libarchive, library))
    sources += [partial(_from_tool, tool) for tool in _TOOLS if shutil.which(tool)]
    if not sources:
        raise MachineError(
            f"{archive} cannot be unpacked: nothing on this machine reads RAR archives.",
            "Install libarchive ('apt install libarchive13' or 'brew install libarchive'), "
            "or the tool 'unrar'.",
        )
    return [_RarReader(archive, members, source) for source in sources]


def libarchive() -> ModuleType | None:
    """Return Python's module for libarchive, None where the system lacks the library."""
    try:
        return import_module("libarchive")
    except (ImportError, OSError, TypeError, AttributeError):
        return None


class _RarReader(Reader):
    """Reads the members that the headers list from a source of their bytes."""

    def __init__(
        self, archive: Path, members: list[RarMember], source: Callable[..., Contents]
    ) -> None:
        super().__init__(archive)
        self._members = members
        self._source = source

    def listing(self) -> Iterator[Member]:
        return iter(self._members)

    def contents(self) -> Contents:
        left = iter(self._members)
        with closing(self._source(self.archive, self._members)) as contents:
            for member, blocks in contents:
                yield member, self._checked(next(left), blocks)
        if next(left, None):
            raise damaged(self.archive, "not all of its members can be read")

    def _checked(self, member: RarMember, blocks: Iterator[bytes]) -> Iterator[bytes]:
        crc = 0
        for block in blocks:
            crc = zlib.crc32(block, crc)
            yield block
        if member.crc not in (crc, None):
            raise damaged(self.archive, f"the checksum of {member.name[:200]!r} is wrong")


def _read_members(archive: Path) -> list[RarMember]:
    """Return all members in their order.

    Raises:
        DataError: The archive is cut off, damaged, encrypted, or one volume of several.
    """
    headers: list[Any] = []

    def check(header: Any) -> None:
        headers.append(header)
        if header.type == rarfile.RAR_BLOCK_MAIN and header.flags & rarfile.RAR_MAIN_VOLUME:
            raise DataError(
                f"{archive} is one of several volumes of one archive.",
                "Unpack them with 'unrar x', and name the folder instead.",
            )
        if len(headers) > MOST_MEMBERS:
            raise too_many_members(archive)

    with damage_named(archive), archive.open("rb") as stream:
        try:
            file = rarfile.RarFile(
                _HeaderFile(stream), info_callback=check, errors="strict", part_only=True
            )
        except (rarfile.Error, OverflowError, LookupError) as error:
            raise damaged(archive, error) from error
    members = [header for header in headers if header.type == rarfile.RAR_BLOCK_FILE]
    if file.needs_password() and not any(header.needs_password() for header in members):
        raise refused(archive, "it is encrypted")
    if not headers or headers[-1].type != rarfile.RAR_BLOCK_ENDARC:
        raise damaged(archive, "it ends early")
    return [_member(header) for header in members]


class _HeaderFile:
    """File for rarfile, which reads a number byte by byte in quadratic time until it ends."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.seek, self.tell = stream.seek, stream.tell
        self._stream = stream
        self._single_bytes = 0

    def read(self, size: int = -1) -> bytes:
        self._single_bytes = self._single_bytes + 1 if size == 1 else 0
        if self._single_bytes > 10:  # the digits of 64 bits
            raise ValueError("a number in a header does not end")
        return self._stream.read(size)


def _member(header: Any) -> RarMember:
    redirection = (header.file_redir or (0,))[0]
    is_unix = header.host_os == rarfile.RAR_OS_UNIX
    special = _LINKS.get(redirection) or (special_kind(header.mode) if is_unix else None)
    if header.needs_password():
        kind = ENCRYPTED
    else:
        kind = special or (FOLDER if header.is_dir() else FILE)
    size = header.file_size if kind == FILE else 0
    return RarMember(header.filename, size, kind, None if redirection == _COPY else header.CRC)


def _from_libarchive(library: ModuleType, archive: Path, members: list[RarMember]) -> Contents:
    """Yield the members with the bytes that libarchive decompresses.

    Raises:
        DataError: The archive is damaged.
        UnsupportedError: libarchive does not read this kind of RAR.
    """

    def blocks(entry: Any) -> Iterator[bytes]:
        try:
            yield from entry.get_blocks(BLOCK)
        except library.ArchiveError as error:
            raise _failure(archive, "libarchive", str(error.msg)) from error

    with archive.open("rb") as file:
        version = "rar5" if file.read(7) == b"Rar!\x1a\x07\x01" else "rar"
    try:
        with library.file_reader(str(archive), format_name=version, filter_name="none") as entries:
            for member, entry in zip(members, entries, strict=False):
                if member.kind == FILE and (entry.size != member.size or member.crc is None):
                    reason = f"its member {member.name[:200]!r} is not understood"
                    raise _unsupported(archive, reason)
                yield member, blocks(entry)
    except library.ArchiveError as error:
        raise _failure(archive, "libarchive", str(error.msg)) from error


def _from_tool(tool: str, archive: Path, members: list[RarMember]) -> Contents:
    """Yield the members with what a tool prints of them."""
    with (
        TemporaryFile() as messages,
        Popen(
            [tool, *_TOOLS[tool], str(archive.absolute())],
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=messages,
        ) as process,
    ):
        output = cast("IO[bytes]", process.stdout)

        def read(size: int) -> bytes:
            data = output.read(size)
            if not data and (code := process.wait()):
                messages.seek(0)
                lines = messages.read().decode(errors="replace").strip().splitlines()
                reason = lines[0] if lines else f"it ended with code {code}"
                raise _failure(archive, tool, reason)
            return data

        def blocks(size: int) -> Iterator[bytes]:
            while size and (block := read(min(size, BLOCK))):
                size -= len(block)
                yield block

        try:
            for member in members:
                of_member = blocks(member.size)
                yield member, of_member
                for _ in of_member:  # the bytes that the caller skipped
                    pass
            if read(1):
                raise damaged(archive, f"{tool} prints more than the archive lists")
        finally:
            process.kill()


def _failure(archive: Path, reader: str, reason: str) -> PinMemError:
    """Return the error that a reader's message stands for."""
    text = reason.replace(f" {archive.absolute()}", "").removeprefix(f"{reader}: ").rstrip(".")
    if re.search("encrypt|password", text, re.IGNORECASE):
        return refused(archive, "it is encrypted")
    if re.search("unavailable|supported|open the file as archive", text, re.IGNORECASE):
        return _unsupported(archive, f"{reader} says: {text}")
    return damaged(archive, f"{reader} says: {text}")


def _unsupported(archive: Path, reason: str) -> UnsupportedError:
    """Return the error for an archive that a reader is not able to read."""
    return UnsupportedError(
        f"{archive} is of a kind that nothing on this machine reads: {reason}.",
        "Install the tool 'unrar', which reads every kind of RAR archive, and try again.",
    )
