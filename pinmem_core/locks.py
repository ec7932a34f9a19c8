"""Keeping other processes out of what this one changes.

A lock lies in the folder that it protects or next to it, so that it holds for every process that
can change the folder, whatever its `PINMEM_HOME`.
"""

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pinmem_core.errors import BusyError, MachineError
from pinmem_core.events import Listener, Notice, ignore

_WAIT_SECONDS = 1.0
"""Seconds to wait for another process."""
_held: set[int] = set()
"""Descriptors of the locks that this process holds."""

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        """Lock a file; return False where another process has, raise OSError without locks."""
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        """Lock a file; return False where another process has, raise OSError without locks."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True


def lock_file(folder: Path) -> Path:
    """Return the lock file next to `folder`, for a folder that is replaced as a whole."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def hold_lock(lock: Path, what: str, on_event: Listener = ignore) -> Iterator[None]:
    """Keep other processes out of something while the block runs.

    Where the file system offers no locks, or the folder cannot be written to, the block runs all
    the same.

    Args:
        lock: The lock file; it is removed afterwards, and so is a folder that was made for it.
        what: What is protected, for messages.
        on_event: Callback that is sent a warning where the file system offers no locks.

    Raises:
        BusyError: Another process holds the lock.
        MachineError: The lock file cannot be made.
    """
    made = not lock.parent.exists()
    try:
        descriptor = _acquire(lock)
    except BlockingIOError:
        raise BusyError(
            f"another pinmem process is using {what}.", "Wait for it to end, or stop it."
        ) from None
    except _NoLocksError as error:
        descriptor = None
        message = f"the file system of {lock.parent} offers no locks ({error}); make sure that no "
        on_event(Notice(f"{message}other pinmem process uses {what}", warning=True))
    except OSError as error:
        reason = error.strerror or error
        hint = "Name another folder, or change its permissions."
        raise MachineError(f"cannot write {lock.parent}: {reason}.", hint) from error
    try:
        yield
    finally:
        if descriptor is not None:
            _release(descriptor, lock)
        if made:
            with suppress(OSError):  # usually it is not empty
                lock.parent.rmdir()


class _NoLocksError(Exception):
    """The file system offers no locks."""


def _acquire(lock: Path) -> int | None:
    """Return the descriptor of the locked file; None where the folder cannot be written to."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        descriptor = _open(lock)
        if descriptor is None:
            return None
        try:
            free = _try_lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise _NoLocksError(error.strerror) from None
        if free and _is_file(descriptor, lock):
            _held.add(descriptor)
            return descriptor
        os.close(descriptor)  # taken, or removed by the process that had it
        if not free:
            if time.monotonic() > deadline:
                raise BlockingIOError
            time.sleep(0.05)


def _open(lock: Path) -> int | None:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    with suppress(OSError):  # the file of another user: a lock on it counts, too
        return os.open(lock, os.O_RDONLY)
    return None


def _is_file(descriptor: int, lock: Path) -> bool:
    """Return whether `lock` still is the file that was locked."""
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False


def _release(descriptor: int, lock: Path) -> None:
    _held.discard(descriptor)
    with suppress(OSError):
        lock.unlink()
    with suppress(OSError):
        os.close(descriptor)


def _forget_in_child() -> None:
    """Close the descriptors that a fork copied: a lock ends with the process that took it."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
