"""RAR archives, which Python itself cannot read.

libarchive reads most of them; installed tools stand in where it is missing, or where it does not
know the archive's kind of compression.
"""

import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from pinmem_core.acquisition.libarchive_reader import LibarchiveReader, libarchive
from pinmem_core.acquisition.members import ENCRYPTED, FILE, Contents, Member, Reader, damaged
from pinmem_core.acquisition.rar_errors import unsupported
from pinmem_core.acquisition.rar_headers import FileHeader, read_headers
from pinmem_core.acquisition.rar_tools import BsdtarReader, bsdtar_is_installed, installed_tools
from pinmem_core.errors import MachineError


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
