"""Safe extraction of archives: complete or not at all, and never outside of the folder."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from pinmem_core.data.archive_readers import (
    BZIP2,
    ENCRYPTED,
    FILE,
    FOLDER,
    GZIP,
    MOST_MEMBERS,
    RAR,
    TAR,
    XZ,
    ZIP,
    Member,
    Reader,
    TarReader,
    UnsupportedError,
    ZipReader,
    exactly,
    refused,
    refused_member,
    require_signature,
    too_many_members,
)
from pinmem_core.data.rar import rar_readers
from pinmem_core.data.thread_pool import Meter
from pinmem_core.documents import json_text, read_json_object
from pinmem_core.errors import DataError, MachineError
from pinmem_core.events import Listener, ignore
from pinmem_core.files import remove_leftovers, restore_folder, staged_folder, write_atomic
from pinmem_core.locks import hold_lock, lock_file
from pinmem_core.paths import folder_size

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


def drain(reader: Reader) -> None:
    """Read all that an archive holds, which shows damage, and write nothing.

    Raises:
        DataError: It is damaged or encrypted.
    """
    with closing(reader.contents()) as contents:
        for member, blocks in contents:
            if member.kind == ENCRYPTED:
                raise refused_member(reader.archive, member.name, f"is {ENCRYPTED}")
            if member.kind == FILE:
                for _ in exactly(reader.archive, member, blocks):
                    pass


def unpack(reader: Reader, folder: Path, on_event: Listener, limit: int | None = None) -> int:
    """Write all members of an archive below an empty folder.

    Args:
        reader: Reads the archive.
        folder: Where they belong.
        on_event: Callback for progress events.
        limit: Bytes that the members may have together; None for what the archive's size allows.

    Returns:
        Bytes that were written.

    Raises:
        DataError: The archive is damaged, or a member is unsafe to unpack.
        MachineError: The disk is too small.
    """
    archive = reader.archive
    size = archive.stat().st_size
    declared = _audited(reader, limit)
    _require_space(archive, folder, declared or size)
    total = declared if reader.position() is None else size
    meter = Meter(f"unpacking {archive.name}", total, on_event)
    written = 0
    for block in _write_all(reader, folder, limit):
        written += block
        position = reader.position()
        meter.show(written if position is None else position)
    meter.show(total or written, now=True)
    return written


def _audited(reader: Reader, limit: int | None) -> int:
    """Audit the archive's list of members, if it has one; return their bytes."""
    audit = Audit(reader.archive, limit)
    for member in reader.listing():
        audit.admit(member)
    return audit.total


def _require_space(archive: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MachineError(
            f"unpacking {archive} needs {needed / 1e9:.2f} GB, "
            f"but {folder.parent} has {free / 1e9:.2f} GB left.",
            "Make space, or let PINMEM_HOME name a folder on a larger disk.",
        )


def _write_all(reader: Reader, folder: Path, limit: int | None) -> Iterator[int]:
    """Audit and write one member after the other; yield how many bytes each write took."""
    audit = Audit(reader.archive, limit)
    with closing(reader.contents()) as contents:
        for member, blocks in contents:
            path = audit.admit(member)
            if path is None:
                continue
            if member.kind == FOLDER:
                (folder / path).mkdir(parents=True, exist_ok=True)
            else:
                yield from _write(folder / path, exactly(reader.archive, member, blocks))


def _write(path: Path, blocks: Iterator[bytes]) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        for block in blocks:
            yield file.write(block)


_SIZE = "unpacked_bytes"
"""Key of the bytes of all files in an unpacked folder, its `MARKER` not counted."""

_KINDS = {
    "zip": ZIP,
    "tar": TAR,
    "tar.gz": GZIP,
    "tgz": GZIP,
    "tar.bz2": BZIP2,
    "tbz2": BZIP2,
    "tar.xz": XZ,
    "txz": XZ,
    "rar": RAR,
}
_SUFFIX = f"(?P<suffix>{'|'.join(map(re.escape, _KINDS))})"
_NAME = re.compile(rf"(?P<stem>.*[^.])\.{_SUFFIX}", re.IGNORECASE | re.DOTALL)
_COPY = re.compile(rf"(?P<stem>.*[^. ]) ?\(\d{{1,3}}\)\.{_SUFFIX}", re.IGNORECASE)
_COPY_BY_WGET = re.compile(rf"(?P<name>.*[^.]\.{_SUFFIX})\.\d{{1,3}}", re.IGNORECASE)
_OTHER_ARCHIVES = re.compile(
    r".*\.(7z|gz|bz2|xz|zst|lzma|z\d\d|(zip|7z)\.\d{3}|(zip|rar|tar|tgz|gz)\.(part|crdownload))",
    re.IGNORECASE,
)


def is_archive(path: Path) -> bool:
    """Whether a file's name says that it is an archive which pinmem unpacks."""
    return _NAME.fullmatch(path.name) is not None


def original_name(name: str) -> str:
    """Return an archive's name without what browsers and wget add to that of a second copy.

    "NAME (1).zip" and "NAME.zip.1" are copies of "NAME.zip".
    """
    if match := _COPY.fullmatch(name):
        return f"{match['stem']}.{match['suffix']}"
    match = _COPY_BY_WGET.fullmatch(name)
    return match["name"] if match else name


def resembles_archive(name: str) -> bool:
    """Return whether a file's name is that of an archive, of a kind that pinmem unpacks or not."""
    pattern = _NAME.fullmatch(original_name(name)) or _OTHER_ARCHIVES.fullmatch(name)
    return pattern is not None


def stem(name: str) -> str:
    """Return an archive's name without its suffix: how the folder of its contents is called.

    Raises:
        DataError: It is no archive by its name.
    """
    return _parse(name)["stem"]


def check_archive(path: Path, name: str | None = None) -> None:
    """Read an archive to its end.

    Args:
        path: The file.
        name: What it is going to be called, where it has another name as yet.

    Raises:
        DataError: It is no archive, damaged or encrypted.
        MachineError: Nothing on this machine reads it.
    """
    _read(path, _kind(name or path.name), drain)


def extract(
    archive: Path,
    parent: Path,
    *,
    name: str | None = None,
    limit: int | None = None,
    on_event: Listener = ignore,
) -> Path:
    """Unpack an archive into a folder that is named like it, unless that was done before.

    Args:
        archive: The file: a zip, a rar, or a tar, which gzip, bzip2 or xz may have compressed.
        parent: Where the folder belongs.
        name: The archive's name where the file is called otherwise.
        limit: Bytes that it may unpack to, where that is less than an archive of its size may.
        on_event: Callback for progress events.

    Returns:
        The folder; it appears whole or not at all.

    Raises:
        DataError: The archive is damaged or unsafe to unpack, or something is in its way.
        MachineError: Nothing on this machine reads it, or the disk is too small.
    """
    name = name or archive.name
    kind = _kind(name)
    folder = restore_folder(parent / stem(name))
    mark, there = _mark(archive), _mark_in(folder)
    if there is not None and mark.items() <= there.items():
        return folder
    if folder.exists() and there is None:
        raise DataError(
            f"{archive} is not unpacked: {folder} is in the way, and pinmem did not make it.",
            "Move it elsewhere.",
        )

    def work(reader: Reader) -> None:
        with staged_folder(folder) as staging:
            size = unpack(reader, staging, on_event, limit)
            _write_mark(staging, {**mark, _SIZE: size})

    with hold_lock(lock_file(folder), str(folder), on_event):
        remove_leftovers(folder)
        _read(archive, kind, work)
    return folder


def unpacked_bytes(folder: Path) -> int | None:
    """Return the size of all files below a folder that an archive was unpacked into.

    The files are not looked at, of which there may be a million.

    Returns:
        None where `folder` is no such folder, or an earlier version of pinmem made it.
    """
    size = (_mark_in(folder) or {}).get(_SIZE)
    if type(size) is not int or size < 0:
        return None
    try:
        return size + (folder / MARKER).stat().st_size
    except OSError:  # another process is replacing the folder
        return None


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Let the block change the files below an unpacked folder, whose recorded size is renewed."""
    mark = {key: value for key, value in (_mark_in(folder) or {}).items() if key != _SIZE}
    _write_mark(folder, mark)  # a block that fails, or is killed, leaves no wrong size
    yield
    size = folder_size(folder) - (folder / MARKER).stat().st_size
    _write_mark(folder, {**mark, _SIZE: size})


def _read(archive: Path, kind: str, work: Callable[[Reader], None]) -> None:
    """Let the first reader that can read the archive do the work."""
    require_signature(archive, kind)
    failures = []
    for reader in _readers(archive, kind):
        try:
            return work(reader)
        except UnsupportedError as error:
            failures.append(error)
    raise failures[0]


def _readers(archive: Path, kind: str) -> list[Reader]:
    if kind == RAR:
        return rar_readers(archive)
    return [ZipReader(archive) if kind == ZIP else TarReader(archive)]


def _kind(name: str) -> str:
    return _KINDS[_parse(name)["suffix"].lower()]


def _parse(name: str) -> re.Match[str]:
    match = _NAME.fullmatch(name)
    if not match:
        raise DataError(
            f"{name} is no archive that pinmem can unpack.",
            f"It unpacks {', '.join(f'.{suffix}' for suffix in _KINDS)}.",
        )
    return match


def _mark(archive: Path) -> dict[str, Any]:
    """Return what tells this archive from others, and from itself after a change."""
    try:
        state = archive.stat()
    except OSError as error:
        raise DataError(f"cannot read {archive}: {error.strerror}.") from error
    return {"file": archive.name, "bytes": state.st_size, "mtime_ns": state.st_mtime_ns}


def _mark_in(folder: Path) -> dict[str, Any] | None:
    """Return what `folder` was unpacked from, None where pinmem did not make it."""
    if not (folder / MARKER).is_file():
        return None
    try:
        return read_json_object(folder / MARKER)
    except DataError:
        return {}


def _write_mark(folder: Path, mark: dict[str, Any]) -> None:
    write_atomic(folder / MARKER, (json_text(mark) + "\n").encode())
