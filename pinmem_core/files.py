"""Writing so that no reader ever sees half of a file or folder, and no failure loses the old one.

Temporary names are random: processes in containers have equal numbers.
"""

import ctypes
import glob
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
    """Yield a neighbour of `path`, to be written, that takes its place when the block succeeds.

    Raises:
        MachineError: The disk is full, or the folder cannot be written to.
    """
    # Named apart from `path`, whose name may be as long as names can be.
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


def is_partial(path: Path) -> bool:
    """Return whether `path` has a name that `atomic_file` gives to what it has not written yet."""
    return _PARTIAL.fullmatch(path.name) is not None


def remove_partial_files(folder: Path) -> None:
    """Remove the files that killed processes left half written; the caller keeps others out."""
    for path in folder.glob(".*.part"):
        if is_partial(path):
            _remove(path)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        MachineError: The disk is full, or the folder cannot be written to.
    """
    with atomic_file(path) as partial:
        partial.write_bytes(data)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file of `lines`, whole or not at all.

    Raises:
        MachineError: The disk is full, or the folder cannot be written to.
    """
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode())


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file; one that a killed process tore stays a line of its own."""
    with path.open("ab+") as file:
        torn = file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
        file.write(f"{chr(10) if torn else ''}{line}\n".encode())


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where the disk knows no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def resumable_folder(folder: Path) -> Iterator[Path]:
    """Yield a neighbour of `folder` that takes its place when the block succeeds.

    Where the block, or the process, is interrupted, the neighbour stays and is yielded again next
    time; where it fails for a reason that the user has to mend, it is removed.

    Raises:
        MachineError: The disk is full, or a folder cannot be written to.
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
        hint = "What is done stays: the same command goes on from there."
        raise MachineError(f"cannot write {folder}: {error}.", hint) from error


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty neighbour of `folder` that takes its place when the block succeeds.

    Raises:
        MachineError: The disk is full, or the parent folder cannot be written to.
    """
    staging = _temporary(folder)
    try:
        staging.mkdir(parents=True)
        yield staging
        _put_in_place(staging, folder)
    except (OSError, SafetensorError) as error:  # safetensors wraps a full disk into its own
        raise MachineError(f"cannot write {folder}: {error}.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def restore_folder(folder: Path) -> Path:
    """Return `folder`, brought back where a process died while it was replacing it.

    That can happen only where the file system cannot exchange two folders.
    """
    if not os.path.lexists(folder):
        for old in sorted(folder.parent.glob(f".{glob.escape(folder.name)}.*.old")):
            with suppress(OSError):  # another process may be faster
                old.rename(folder)
                break
    return folder


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left while they wrote `folder`; the caller keeps others out."""
    temporary = re.compile(rf"\.{re.escape(restore_folder(folder).name)}\.[0-9a-f]+\.(part|old)")
    for path in folder.parent.glob(".*"):
        if temporary.fullmatch(path.name):
            _remove(path)


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{token_hex(8)}.part")


def _put_in_place(work: Path, folder: Path) -> None:
    """Rename `work` to `folder`; what is there goes only when that has succeeded."""
    if not os.path.lexists(folder):
        work.rename(folder)
    elif _exchange(work, folder):
        old = _temporary(folder)
        work.rename(old)  # nobody goes on with a folder that is half removed
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
    """Exchange two paths in one step; return False where system or disk cannot."""
    exchange = _system_exchange()
    return exchange is not None and exchange(os.fsencode(one), os.fsencode(other)) == 0


def _system_exchange() -> Callable[[bytes, bytes], int] | None:
    """Return the system's call that exchanges two paths and returns 0, or None without one."""
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
