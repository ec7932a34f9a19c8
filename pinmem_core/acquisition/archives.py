"""Unpacking archives safely: whole or not at all, and nothing outside the folder meant for it."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pinmem_core.acquisition.audit import MARKER
from pinmem_core.acquisition.members import Reader, UnsupportedError
from pinmem_core.acquisition.rar_reader import rar_readers
from pinmem_core.acquisition.signatures import BZIP2, GZIP, RAR, TAR, XZ, ZIP, require_signature
from pinmem_core.acquisition.tar_reader import TarReader
from pinmem_core.acquisition.unpacking import drain, unpack
from pinmem_core.acquisition.zip_reader import ZipReader
from pinmem_core.documents import json_text, read_json_object
from pinmem_core.errors import DataError
from pinmem_core.events import Listener, ignore
from pinmem_core.files import remove_leftovers, restore_folder, staged_folder, write_whole
from pinmem_core.locks import lock_of, locked
from pinmem_core.paths import bytes_below

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

    with locked(lock_of(folder), str(folder), on_event):
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
    size = bytes_below(folder) - (folder / MARKER).stat().st_size
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
    write_whole(folder / MARKER, (json_text(mark) + "\n").encode())
