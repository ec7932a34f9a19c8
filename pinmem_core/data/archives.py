"""Safe extraction of archives: completely or not at all, and never outside of the folder."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from pinmem_core.data.archive_readers import (
    ENCRYPTED,
    FILE,
    FOLDER,
    MOST_MEMBERS,
    Member,
    Reader,
    TarReader,
    UnsupportedError,
    ZipReader,
    exactly,
    refused,
    refused_member,
    too_many_members,
)
from pinmem_core.data.rar import rar_readers
from pinmem_core.documents import json_text, read_json_object
from pinmem_core.errors import DataError, MachineError
from pinmem_core.events import Listener, ThrottledProgress, ignore
from pinmem_core.files import remove_leftovers, restore_folder, staged_folder, write_atomic
from pinmem_core.locks import hold_lock, lock_file
from pinmem_core.paths import folder_size

MARKER = ".archive.json"
"""Name of the file that records the archive from which a folder was unpacked."""
LARGEST_GROWTH = 200
"""Maximum ratio of an archive's unpacked size to its own size."""
SMALL = 64 * 2**20
"""Unpacked size in bytes that is allowed for any archive."""

_SIZE = "unpacked_bytes"  # key in `MARKER`: size of all files but `MARKER` itself
_GIVEN = "given"  # key in `MARKER`: whether the archive is the user's
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LONGEST_PATH, _LONGEST_NAME = 2048, 255
_DRIVE = re.compile(r"[A-Za-z]:")
_KINDS = {
    "zip": "a zip archive",
    "tar": "a tar archive",
    "tar.gz": "a gzip archive",
    "tgz": "a gzip archive",
    "tar.bz2": "a bzip2 archive",
    "tbz2": "a bzip2 archive",
    "tar.xz": "an xz archive",
    "txz": "an xz archive",
    "rar": "a RAR archive",
}
_SUFFIXES = {kind: suffix for suffix, kind in reversed(_KINDS.items())}
"""The usual suffix of each kind."""
_SIGNATURES = {
    "a tar archive": rb".{257}ustar",
    "a zip archive": rb"PK(\x03\x04|\x05\x06|\x07\x08)",
    "a gzip archive": rb"\x1f\x8b",
    "a RAR archive": rb"Rar!\x1a\x07",
    "a 7z archive": rb"7z\xbc\xaf\x27\x1c",
    "a bzip2 archive": rb"BZh",
    "an xz archive": rb"\xfd7zXZ",
    "a web page": rb"(\xef\xbb\xbf)?\s*<",
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
    """Return whether pinmem unpacks a file, according to its name."""
    return _NAME.fullmatch(path.name) is not None


def original_name(name: str) -> str:
    """Return the name of an archive without the number that browsers and wget add to a copy.

    "NAME (1).zip" and "NAME.zip.1" are copies of "NAME.zip".
    """
    if match := _COPY.fullmatch(name):
        return f"{match['stem']}.{match['suffix']}"
    match = _COPY_BY_WGET.fullmatch(name)
    return match["name"] if match else name


def resembles_archive(name: str) -> bool:
    """Return whether a name is that of an archive, even of a kind that pinmem does not unpack."""
    return bool(_NAME.fullmatch(original_name(name)) or _OTHER_ARCHIVES.fullmatch(name))


def stem(name: str) -> str:
    """Return the name of an archive without its suffix, which is the name of its folder.

    Raises:
        DataError: It is not an archive by its name.
    """
    return _parse(name)["stem"]


def _parse(name: str) -> re.Match[str]:
    match = _NAME.fullmatch(name)
    if not match:
        raise DataError(
            f"{name} is no archive that pinmem can unpack.",
            f"It unpacks {', '.join(f'.{suffix}' for suffix in _KINDS)}.",
        )
    return match


def allowed_growth(archive: Path) -> int:
    """Return the maximum unpacked size of an archive in bytes."""
    return max(SMALL, LARGEST_GROWTH * archive.stat().st_size)


class Audit:
    """Check of the members of an archive, one after the other.

    The same rules hold for zip, tar and RAR. They are stricter than the `data` filter of tarfile,
    which admits links, names that occur twice and absolute paths.

    Args:
        archive: Path of the archive.
        limit: Maximum unpacked size in bytes; None for `allowed_growth`.

    Attributes:
        total: Sum of the sizes of all members so far in bytes, according to the archive.
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
        """Return the path of a member below the target folder, None for one to leave out.

        Raises:
            DataError: The member, or all so far together, would be unsafe to unpack.
        """
        self._count += 1
        self.total += max(0, member.size)
        if self._count > MOST_MEMBERS:
            raise too_many_members(self._archive, MOST_MEMBERS)
        if self.total > self._limit:
            growth = f"it would grow to more than {LARGEST_GROWTH} times its own size"
            raise refused(self._archive, f"{growth}, or that of the archive that held it")
        name = member.name.replace("\\", "/")
        fault = _fault_of_name(name)
        if not fault and member.kind not in (FILE, FOLDER):
            fault = f"is {member.kind}"
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if not fault and (parts[:1] == ["__MACOSX"] or parts[-1:] == [".DS_Store"]):
            return None
        *parents, path = accumulate(parts, "{}/{}".format) if parts else [""]
        if fault := fault or self._fault_of_place(path, parents, member.kind):
            raise refused_member(self._archive, member.name, fault)
        self._folders.update(parents)
        (self._folders if member.kind == FOLDER else self._files).add(path)
        return path

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


def check_archive(path: Path, name: str | None = None) -> None:
    """Read an archive to its end, which reveals damage.

    Args:
        path: Path of the archive.
        name: Future name of the archive, if it has another one now.

    Raises:
        DataError: It is not an archive, damaged or encrypted.
        MachineError: No reader on this machine supports it.
    """

    def read_all(reader: Reader) -> None:
        with closing(reader.contents()) as contents:
            for member, blocks in contents:
                if member.kind == ENCRYPTED:
                    raise refused_member(path, member.name, f"is {ENCRYPTED}")
                if member.kind == FILE:
                    for _ in exactly(path, member, blocks):
                        pass

    _read(path, name or path.name, read_all)


def is_unpacked(archive: Path, parent: Path, name: str) -> bool:
    """Return whether `extract` would find its folder of an archive of this name, as it is now."""
    existing = _mark_in(restore_folder(parent / stem(name)))
    return existing is not None and _mark(archive).items() <= existing.items()


def extract(
    archive: Path,
    parent: Path,
    *,
    name: str | None = None,
    limit: int | None = None,
    given: bool = False,
    on_event: Listener = ignore,
) -> Path:
    """Unpack an archive into a folder of its name, unless that has been done before.

    Args:
        archive: A zip, a RAR, or a tar, which may be compressed by gzip, bzip2 or xz.
        parent: Parent of the folder.
        name: Name of the archive, if the file has another one.
        limit: Maximum unpacked size in bytes, if it is below `allowed_growth`.
        given: Whether the archive is the user's, for `was_given`.
        on_event: Callback for progress events.

    Returns:
        The folder. It appears complete or not at all.

    Raises:
        DataError: The archive is damaged or unsafe to unpack, or another folder is in its place.
        MachineError: No reader on this machine supports it, or the disk is too small.
    """
    name = name or archive.name
    if is_unpacked(archive, parent, name):
        return parent / stem(name)
    folder, mark = parent / stem(name), _mark(archive)
    if folder.exists() and _mark_in(folder) is None:
        raise DataError(
            f"{archive} is not unpacked: {folder} is in the way, and pinmem did not make it.",
            "Move it elsewhere.",
        )

    def unpack(reader: Reader) -> None:
        with staged_folder(folder) as staging:
            size = _write_all(reader, staging, limit, on_event)
            _write_mark(staging, {**mark, _SIZE: size, _GIVEN: given})

    with hold_lock(lock_file(folder), str(folder), on_event):
        remove_leftovers(folder)
        _read(archive, name, unpack)
    return folder


def _read(archive: Path, name: str, work: Callable[[Reader], None]) -> None:
    """Call `work` with the first reader that supports the archive."""
    suffix = _parse(name)["suffix"].lower()
    _require_signature(archive, suffix)
    if suffix == "rar":
        readers = rar_readers(archive)
    else:
        readers = [ZipReader(archive) if suffix == "zip" else TarReader(archive)]
    failures = []
    for reader in readers:
        try:
            return work(reader)
        except UnsupportedError as error:
            failures.append(error)
    raise failures[0]


def _require_signature(path: Path, suffix: str) -> None:
    """Check that a file begins like an archive with its suffix."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}.") from error
    if not head:
        raise DataError(f"{path} is empty.", "Fetch it again.")
    actual = _kind_of(head)
    if actual == _KINDS[suffix] or (actual is None and suffix in ("zip", "tar")):
        return  # a self-extracting zip, and a tar from before "ustar", begin with anything
    if actual in _SUFFIXES:
        raise DataError(
            f"{path} is not {_KINDS[suffix]}, but {actual}.", _rename_hint(path, actual)
        )
    beginning = head.lstrip().split(b"\n")[0][:40].decode("ascii", "replace")
    raise DataError(
        f"{path} is not {_KINDS[suffix]}: it looks like {actual or 'something else'} "
        f"(it starts with {beginning!r}).",
        "Fetch it again; where the site gave a page instead, log in or accept its terms first.",
    )


def _kind_of(head: bytes) -> str | None:
    """Return the kind of a file by its first bytes, or None."""
    kinds = (kind for kind, pattern in _SIGNATURES.items() if re.match(pattern, head, re.DOTALL))
    return next(kinds, None)


def _rename_hint(path: Path, kind: str) -> str:
    match = _NAME.fullmatch(path.name)
    named = path.with_name(f"{match['stem'] if match else path.name}.{_SUFFIXES[kind]}")
    return f"Rename it to {named}, and name it itself with --from."


def refuse_misnamed(path: Path) -> None:
    """Refuse a file that is an archive by its content, but not by its name.

    Raises:
        DataError: It is one.
    """
    with suppress(OSError), path.open("rb") as file:
        kind = _kind_of(file.read(512))
        if kind in _SUFFIXES:
            raise DataError(f"{path} is {kind}, but not by its name.", _rename_hint(path, kind))


def _write_all(reader: Reader, folder: Path, limit: int | None, on_event: Listener) -> int:
    """Check and write all members; return the number of written bytes."""
    archive = reader.archive
    size = archive.stat().st_size
    audit = Audit(archive, limit)
    for member in reader.listing():
        audit.admit(member)
    _require_space(archive, folder, audit.total or size)
    total = audit.total if reader.position() is None else size
    progress = ThrottledProgress(f"unpacking {archive.name}", total, on_event)
    audit = Audit(archive, limit)
    written = 0
    with closing(reader.contents()) as contents:
        for member, blocks in contents:
            path = audit.admit(member)
            if path is None:
                continue
            target = folder / path
            if member.kind == FOLDER:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                for block in exactly(archive, member, blocks):
                    written += file.write(block)
                    position = reader.position()
                    progress.update(written if position is None else position)
    progress.update(total or written, force=True)
    return written


def _require_space(archive: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MachineError(
            f"unpacking {archive} needs {needed / 1e9:.2f} GB, "
            f"but {folder.parent} has {free / 1e9:.2f} GB left.",
            "Make space, or let PINMEM_HOME name a folder on a larger disk.",
        )


def unpacked_bytes(folder: Path) -> int | None:
    """Return the recorded size of all files below an unpacked folder, without listing them.

    Returns:
        None if pinmem did not unpack `folder`, or an earlier version of it did.
    """
    size = (_mark_in(folder) or {}).get(_SIZE)
    if type(size) is not int or size < 0:
        return None
    try:
        return size + (folder / MARKER).stat().st_size
    except OSError:  # another process is replacing the folder
        return None


def was_given(folder: Path) -> bool:
    """Return whether a folder was unpacked from an archive of the user, not from a download."""
    return (_mark_in(folder) or {}).get(_GIVEN) is True


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Let the block change the files below an unpacked folder, then record their new size."""
    mark = {key: value for key, value in (_mark_in(folder) or {}).items() if key != _SIZE}
    _write_mark(folder, mark)  # a block that fails, or is killed, leaves no wrong size
    yield
    size = folder_size(folder) - (folder / MARKER).stat().st_size
    _write_mark(folder, {**mark, _SIZE: size})


def _mark(archive: Path) -> dict[str, Any]:
    """Return what identifies this version of an archive."""
    try:
        state = archive.stat()
    except OSError as error:
        raise DataError(f"cannot read {archive}: {error.strerror}.") from error
    return {"file": archive.name, "bytes": state.st_size, "mtime_ns": state.st_mtime_ns}


def _mark_in(folder: Path) -> dict[str, Any] | None:
    """Return the content of `MARKER`, None for a folder that pinmem did not unpack."""
    if not (folder / MARKER).is_file():
        return None
    try:
        return read_json_object(folder / MARKER)
    except DataError:
        return {}


def _write_mark(folder: Path, mark: dict[str, Any]) -> None:
    write_atomic(folder / MARKER, (json_text(mark) + "\n").encode())
