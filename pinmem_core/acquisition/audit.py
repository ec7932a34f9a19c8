"""The rules that every member of an archive has to pass before it is written."""

import os
import re
from itertools import accumulate
from pathlib import Path

from pinmem_core.acquisition.members import (
    FILE,
    FOLDER,
    MOST_MEMBERS,
    Member,
    refused,
    refused_member,
    too_many_members,
)
from pinmem_core.errors import DataError

MARKER = ".archive.json"
"""Name of the file in which pinmem notes what a folder was unpacked from."""

LARGEST_GROWTH = 200
"""How many times its own size an archive may grow by being unpacked."""
SMALL = 64 * 2**20
"""To so many bytes it may grow in any case."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LONGEST_PATH, _LONGEST_NAME = 2048, 255
_DRIVE = re.compile(r"[A-Za-z]:")


def allowed_growth(archive: Path) -> int:
    """Return to how many bytes an archive of its size may unpack."""
    return max(SMALL, LARGEST_GROWTH * archive.stat().st_size)


class Audit:
    """Admits the members of an archive one after the other.

    Args:
        archive: The file that holds them.
        limit: Bytes that they may have together; None for what the archive's size allows.

    Attributes:
        total: Bytes that the members admitted so far say they have.
    """

    def __init__(self, archive: Path, limit: int | None = None) -> None:
        self.total = 0
        self._archive = archive
        allowed = allowed_growth(archive)
        self._limit = allowed if limit is None else min(limit, allowed)
        self._count = 0
        self._files: set[str] = set()
        self._folders: set[str] = {""}

    def admit(self, member: Member) -> str | None:
        """Return where a member belongs below the target folder, None if it is not wanted.

        Raises:
            DataError: The member, or all so far together, would be unsafe to unpack.
        """
        self._count_in(member)
        name = member.name.replace("\\", "/")
        fault = _fault_of_name(name) or _fault_of_kind(member.kind)
        if fault:
            raise self._refused(member, fault)
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if parts[:1] == ["__MACOSX"] or parts[-1:] == [".DS_Store"]:
            return None
        *parents, path = accumulate(parts, "{}/{}".format) if parts else [""]
        if fault := self._fault_of_place(path, parents, member.kind):
            raise self._refused(member, fault)
        self._folders.update(parents)
        (self._folders if member.kind == FOLDER else self._files).add(path)
        return path

    def _count_in(self, member: Member) -> None:
        self._count += 1
        self.total += max(0, member.size)
        if self._count > MOST_MEMBERS:
            raise too_many_members(self._archive, MOST_MEMBERS)
        if self.total > self._limit:
            raise refused(
                self._archive,
                f"it would grow to more than {LARGEST_GROWTH} times its own size, or that of the "
                "archive that held it",
            )

    def _fault_of_place(self, path: str, parents: list[str], kind: str) -> str | None:
        if path in self._files:
            return "occurs twice"
        if not self._files.isdisjoint(parents):
            return "lies below a file"
        if kind == FOLDER:
            return None
        if path in self._folders:
            return "is both a file and a folder"
        return "has a name that pinmem keeps for itself" if path.casefold() == MARKER else None

    def _refused(self, member: Member, fault: str) -> DataError:
        return refused_member(self._archive, member.name, fault)


def _fault_of_name(name: str) -> str | None:
    parts = name.split("/")
    if len(name) > _LONGEST_PATH or any(len(os.fsencode(part)) > _LONGEST_NAME for part in parts):
        return "has too long a name"
    if _CONTROL.search(name):
        return "has control characters in its name"
    if name.startswith("/") or any(_DRIVE.match(part) for part in parts):
        return "has an absolute path"
    if ".." in parts:
        return "leads out of its folder"
    return None if name else "has no name"


def _fault_of_kind(kind: str) -> str | None:
    return None if kind in (FILE, FOLDER) else f"is {kind}"
