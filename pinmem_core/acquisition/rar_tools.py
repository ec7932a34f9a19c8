"""RAR archives through installed tools: they only print what they unpack, and pinmem writes it."""

import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from tempfile import TemporaryFile
from typing import IO, cast

from pinmem_core.acquisition.members import (
    BLOCK,
    ENCRYPTED,
    FILE,
    FOLDER,
    Contents,
    Member,
    Reader,
    damage_named,
    damaged,
)
from pinmem_core.acquisition.rar_errors import failure, unsupported
from pinmem_core.acquisition.tar_reader import tar_contents

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
