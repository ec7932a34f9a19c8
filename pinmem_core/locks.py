"""Advisory file locks between pinmem processes.

A lock file lies in the folder that it protects or next to it. It therefore holds for every process
that can change the folder, whatever its `PINMEM_HOME`.
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

_TIMEOUT = 1.0  # seconds to wait for another process
_ATTEMPTS = 100  # to create a lock file while other holders remove its folder
_held: set[int] = set()  # descriptors of the locks of this process

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        """Return False if another process holds the lock; raise OSError without lock support."""
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        """Return False if another process holds the lock; raise OSError without lock support."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True


def lock_file(folder: Path) -> Path:
    """Return the lock file next to `folder`, for a folder that is replaced atomically."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def hold_lock(lock: Path, what: str, on_event: Listener = ignore) -> Iterator[None]:
    """Hold a lock file during the block.

    The block also runs without a lock if the file system has none or the folder is not writable.

    Args:
        lock: The lock file. It is removed afterwards, as is a folder that was created for it.
        what: Name of the protected resource in messages.
        on_event: Callback for a warning if the file system has no locks.

    Raises:
        BusyError: Another process holds the lock.
        MachineError: The lock file cannot be created.
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
        message = f"the file system of {lock.parent} has no locks ({error}); make sure that no "
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


def is_locked(lock: Path) -> bool:
    """Return whether another process holds a lock file."""
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor)
    except OSError:  # the file system has no locks
        return False
    finally:
        os.close(descriptor)


class _NoLocksError(Exception):
    """The file system has no locks."""


def _acquire(lock: Path) -> int | None:
    """Return the descriptor of the locked file; None if the folder is not writable."""
    deadline = time.monotonic() + _TIMEOUT
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
        os.close(descriptor)  # held by another process, or removed by the last holder
        if not free:
            if time.monotonic() > deadline:
                raise BlockingIOError
            time.sleep(0.05)


def _open(lock: Path) -> int | None:
    try:
        for _ in range(_ATTEMPTS):
            # Another holder may remove the folder that it created before the file is in it.
            with suppress(FileNotFoundError, FileExistsError):
                return _create(lock)
        return _create(lock)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    with suppress(OSError):  # a file of another user can still be locked
        return os.open(lock, os.O_RDONLY)
    return None


def _create(lock: Path) -> int:
    lock.parent.mkdir(parents=True, exist_ok=True)
    return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)


def _is_file(descriptor: int, lock: Path) -> bool:
    """Return whether `lock` is still the locked file."""
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
    """Close the descriptors in a forked child, because a lock belongs to the parent."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
