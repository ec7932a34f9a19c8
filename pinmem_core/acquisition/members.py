"""What the readers of all kinds of archives share: members, and the errors of reading them."""

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
from pathlib import Path

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
