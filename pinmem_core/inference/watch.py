"""Find the images that appear in a folder while other programs write there."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pinmem_core.errors import DataError
from pinmem_core.inference.sources import Source, images_in

SETTLED = 1.0
"""Seconds without a change after which a file is complete."""
INTERVAL = 0.25
"""Seconds between two listings of the folder."""
_Fingerprint = tuple[int, int]


def watch_folder(folder: Path, out: Path) -> Iterator[tuple[list[Source], set[Path]]]:
    """Yield all images of a folder, and which of them are new and complete, without end.

    A file is complete when it is not empty and its size and time have not changed for `SETTLED`
    seconds. A file that changes later is new again.

    Args:
        folder: Folder to watch, with its sub-folders.
        out: Output folder; what lies in it is left out.

    Raises:
        DataError: The folder does not exist, or cannot be listed.
    """
    done: dict[Path, _Fingerprint] = {}
    waiting: dict[Path, tuple[_Fingerprint, float]] = {}
    while True:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder.", "Name a folder to watch.")
        sources, new = images_in(folder, out), set[Path]()
        for path in (source.path for source in sources):
            with suppress(OSError):  # it is gone
                status = path.stat()
                now = status.st_size, status.st_mtime_ns
                if not status.st_size or done.get(path) == now:
                    continue
                before, since = waiting.get(path, (None, 0.0))
                if before != now:
                    waiting[path] = now, time.monotonic()
                elif time.monotonic() - since >= SETTLED:
                    done[path] = now
                    new.add(path)
                    del waiting[path]
        yield sources, new
        time.sleep(INTERVAL)
