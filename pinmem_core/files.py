"""Atomic writes of files and folders.

A reader sees the old or the new content, never a part of it. Temporary names are random, because
processes in different containers have equal ids.
"""

import ctypes
import glob
import hashlib
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from safetensors import SafetensorError

from pinmem_core.errors import ConfigError, DataError, MachineError

_PARTIAL = re.compile(r"\.[0-9a-f]{16}\.part")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block succeeds.

    Raises:
        MachineError: The disk is full, or the folder is not writable.
    """
    # The name of `path` may already have the maximum length: do not extend it.
    partial = path.with_name(f".{token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def check_folder(folder: Path) -> None:
    """Check that no file is in the place of a folder, or of one above it.

    Raises:
        ConfigError: There is such a file.
    """
    there = next(path for path in (folder, *folder.parents, Path("/")) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"{there} is a file, not a folder.", "Name another -o.")


def is_partial(path: Path) -> bool:
    """Return whether `path` has a temporary name of `atomic_file`."""
    return _PARTIAL.fullmatch(path.name) is not None


def remove_partial_files(folder: Path) -> None:
    """Remove the partial files of killed processes. The caller must hold the lock of the folder."""
    for path in folder.glob(".*.part"):
        if is_partial(path):
            _remove(path)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file atomically.

    Raises:
        MachineError: The disk is full, or the folder is not writable.
    """
    with atomic_file(path) as partial:
        partial.write_bytes(data)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file of `lines` atomically.

    Raises:
        MachineError: The disk is full, or the folder is not writable.
    """
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode())


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file, after ending an incomplete last line."""
    with path.open("ab+") as file:
        incomplete = file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
        file.write(f"{chr(10) if incomplete else ''}{line}\n".encode())


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, or raise OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link `target` to `source`, or copy it if the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def resumable_folder(folder: Path) -> Iterator[Path]:
    """Yield a work folder that replaces `folder` when the block succeeds.

    After an interruption, the work folder remains, and the next call yields it again. After a
    `ConfigError` or `DataError`, it is removed.

    Raises:
        MachineError: The disk is full, or a folder is not writable.
    """
    work = folder.with_name(f".{folder.name}.part")
    try:
        work.mkdir(parents=True, exist_ok=True)
        yield work
        _put_in_place(work, folder)
    except (ConfigError, DataError):
        shutil.rmtree(work, ignore_errors=True)
        raise
    except OSError as error:
        hint = "Finished work is kept. Run the same command to continue."
        raise MachineError(f"cannot write {folder}: {error}.", hint) from error


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that replaces `folder` when the block succeeds.

    Raises:
        MachineError: The disk is full, or the parent folder is not writable.
    """
    staging = _temporary(folder)
    try:
        staging.mkdir(parents=True)
        yield staging
        _put_in_place(staging, folder)
    except (OSError, SafetensorError) as error:  # safetensors wraps OSError
        raise MachineError(f"cannot write {folder}: {error}.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def restore_folder(folder: Path) -> Path:
    """Return `folder`, after restoring it if a process died while replacing it.

    This is needed only on file systems that cannot exchange two folders atomically.
    """
    if not os.path.lexists(folder):
        for old in sorted(folder.parent.glob(f".{glob.escape(folder.name)}.*.old")):
            with suppress(OSError):  # another process may be faster
                old.rename(folder)
                break
    return folder


def remove_leftovers(folder: Path) -> None:
    """Remove temporary folders of killed writers of `folder`. The caller must hold its lock."""
    temporary = re.compile(rf"\.{re.escape(restore_folder(folder).name)}\.[0-9a-f]+\.(part|old)")
    for path in folder.parent.glob(".*"):
        if temporary.fullmatch(path.name):
            _remove(path)


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{token_hex(8)}.part")


def _put_in_place(work: Path, folder: Path) -> None:
    """Rename `work` to `folder`, then remove what it replaced."""
    if not os.path.lexists(folder):
        work.rename(folder)
    elif _exchange(work, folder):
        old = _temporary(folder)
        work.rename(old)  # a partly removed folder must not be resumed
        _remove(old)
    else:
        old = folder.with_name(f".{folder.name}.{token_hex(8)}.old")
        folder.rename(old)
        try:
            work.rename(folder)
        except BaseException:
            restore_folder(folder)
            raise
        _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths atomically; return False if the system cannot."""
    exchange = _system_exchange()
    return exchange is not None and exchange(os.fsencode(one), os.fsencode(other)) == 0


def _system_exchange() -> Callable[[bytes, bytes], int] | None:
    """Return the system call that exchanges two paths and returns 0 on success, or None."""
    try:
        if platform.system() == "Darwin":
            swap = ctypes.CDLL(None).renamex_np
            swap.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint)
            return lambda one, other: swap(one, other, 2)  # RENAME_SWAP
        if platform.system() == "Linux":
            rename = ctypes.CDLL(None).renameat2
            here = -100  # AT_FDCWD
            path = (ctypes.c_int, ctypes.c_char_p)
            rename.argtypes = (*path, *path, ctypes.c_uint)
            return lambda one, other: rename(here, one, here, other, 2)  # RENAME_EXCHANGE
    except (OSError, AttributeError):  # an older C library
        return None
    return None
