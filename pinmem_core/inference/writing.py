"""Writing large files bit by bit, whole or not at all."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pinmem_core.errors import MachineError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a neighbour of `path`, to be written, that takes its place when the block succeeds.

    Raises:
        MachineError: The disk is full, or the folder cannot be written to.
    """
    # Named apart from `path`, whose name may be as long as names can be.
    partial = path.with_name(f".{os.getpid()}-{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
