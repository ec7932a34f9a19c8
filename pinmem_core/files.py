"""Writing so that no reader ever sees half of a file or folder."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pinmem_core.errors import DataError


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to a neighbour of `path` and rename it.

    Raises:
        DataError: The folder cannot be written to.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty neighbour of `folder` that takes its place when the block succeeds.

    Raises:
        DataError: The parent folder cannot be written to.
    """
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        staging.mkdir(parents=True)
        yield staging
        if folder.exists():
            folder.rename(old)
        staging.rename(folder)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error}.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
