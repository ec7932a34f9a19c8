"""Writing so that no reader ever sees half of a file or folder."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from safetensors import SafetensorError

from pinmem_core.errors import ConfigError, DataError, MachineError

_NUMBERS = count()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a neighbour of `path`, to be written, that takes its place when the block succeeds.

    Raises:
        MachineError: The disk is full, or the folder cannot be written to.
    """
    # Named apart from `path`, whose name may be as long as names can be.
    partial = path.with_name(f".{os.getpid()}-{next(_NUMBERS)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        MachineError: The disk is full, or the folder cannot be written to.
    """
    with whole_file(path) as partial:
        partial.write_bytes(data)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file of `lines`, whole or not at all.

    Raises:
        MachineError: The disk is full, or the folder cannot be written to.
    """
    write_whole(path, "".join(f"{line}\n" for line in lines).encode())


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
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        staging.mkdir(parents=True)
        yield staging
        _put_in_place(staging, folder)
    except (OSError, SafetensorError) as error:  # safetensors wraps a full disk into its own
        raise MachineError(f"cannot write {folder}: {error}.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _put_in_place(work: Path, folder: Path) -> None:
    """Rename `work` to `folder`; what is there goes only when that has succeeded."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    try:
        work.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
