"""Unpacking archives safely: whole or not at all, and nothing outside the folder meant for it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from pinmem_core.acquisition.audit import MARKER
from pinmem_core.acquisition.leftovers import clear_leftovers
from pinmem_core.acquisition.members import Reader, UnsupportedError
from pinmem_core.acquisition.rar_reader import rar_readers
from pinmem_core.acquisition.signatures import GZIP, RAR, TAR, ZIP, require_signature
from pinmem_core.acquisition.tar_reader import TarReader
from pinmem_core.acquisition.unpacking import drain, unpack
from pinmem_core.acquisition.zip_reader import ZipReader
from pinmem_core.errors import DataError
from pinmem_core.events import Listener, ignore
from pinmem_core.files import staged_folder

_NAME = re.compile(r"(?P<stem>.*[^.])\.(?P<suffix>zip|tar|tar\.gz|tgz|rar)", re.IGNORECASE)
_KINDS = {"zip": ZIP, "tar": TAR, "tar.gz": GZIP, "tgz": GZIP, "rar": RAR}


def is_archive(path: Path) -> bool:
    """Whether a file's name says that it is an archive which pinmem unpacks."""
    return _NAME.fullmatch(path.name) is not None


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


def extract(archive: Path, parent: Path, *, on_event: Listener = ignore) -> Path:
    """Unpack an archive into a folder that is named like it, unless that was done before.

    Args:
        archive: The file: a zip, tar, tar.gz, tgz or rar.
        parent: Where the folder belongs.
        on_event: Hears of the progress.

    Returns:
        The folder; it appears whole or not at all.

    Raises:
        DataError: The archive is damaged or unsafe to unpack, or something is in its way.
        MachineError: Nothing on this machine reads it, or the disk is too small.
    """
    kind = _kind(archive.name)
    folder = parent / stem(archive.name)
    mark = _mark(archive)
    if _mark_in(folder) == mark:
        return folder
    if folder.exists() and _mark_in(folder) is None:
        raise DataError(
            f"{archive} is not unpacked: {folder} is in the way, and pinmem did not make it.",
            "Move it elsewhere.",
        )
    clear_leftovers(folder)

    def work(reader: Reader) -> None:
        with staged_folder(folder) as staging:
            unpack(reader, staging, on_event)
            (staging / MARKER).write_text(mark, encoding="utf-8")

    _read(archive, kind, work)
    return folder


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
            "It unpacks .zip, .tar, .tar.gz, .tgz and .rar.",
        )
    return match


def _mark(archive: Path) -> str:
    """Return what tells this archive from others, and from itself after a change."""
    try:
        state = archive.stat()
    except OSError as error:
        raise DataError(f"cannot read {archive}: {error.strerror}.") from error
    facts = {"file": archive.name, "bytes": state.st_size, "mtime_ns": state.st_mtime_ns}
    return json.dumps(facts) + "\n"


def _mark_in(folder: Path) -> str | None:
    """Return what `folder` was unpacked from, None where pinmem did not make it."""
    try:
        return (folder / MARKER).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
