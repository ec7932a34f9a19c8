"""Writing what a reader reads, member by member."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from pinmem_core.acquisition.audit import Audit
from pinmem_core.acquisition.members import (
    ENCRYPTED,
    FILE,
    FOLDER,
    Reader,
    exactly,
    refused_member,
)
from pinmem_core.acquisition.meter import Meter
from pinmem_core.errors import MachineError
from pinmem_core.events import Listener


def drain(reader: Reader) -> None:
    """Read all that an archive holds, which shows damage, and write nothing.

    Raises:
        DataError: It is damaged or encrypted.
    """
    with closing(reader.contents()) as contents:
        for member, blocks in contents:
            if member.kind == ENCRYPTED:
                raise refused_member(reader.archive, member.name, f"is {ENCRYPTED}")
            if member.kind == FILE:
                for _ in exactly(reader.archive, member, blocks):
                    pass


def unpack(reader: Reader, folder: Path, on_event: Listener, limit: int | None = None) -> int:
    """Write all members of an archive below an empty folder.

    Args:
        reader: Reads the archive.
        folder: Where they belong.
        on_event: Callback for progress events.
        limit: Bytes that the members may have together; None for what the archive's size allows.

    Returns:
        Bytes that were written.

    Raises:
        DataError: The archive is damaged, or a member is unsafe to unpack.
        MachineError: The disk is too small.
    """
    archive = reader.archive
    size = archive.stat().st_size
    declared = _audited(reader, limit)
    _require_space(archive, folder, declared or size)
    total = declared if reader.position() is None else size
    meter = Meter(f"unpacking {archive.name}", total, on_event)
    written = 0
    for block in _write_all(reader, folder, limit):
        written += block
        position = reader.position()
        meter.show(written if position is None else position)
    meter.show(total or written, now=True)
    return written


def _audited(reader: Reader, limit: int | None) -> int:
    """Audit the archive's list of members, if it has one; return their bytes."""
    audit = Audit(reader.archive, limit)
    for member in reader.listing():
        audit.admit(member)
    return audit.total


def _require_space(archive: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MachineError(
            f"unpacking {archive} needs {needed / 1e9:.2f} GB, "
            f"but {folder.parent} has {free / 1e9:.2f} GB left.",
            "Make space, or let PINMEM_HOME name a folder on a larger disk.",
        )


def _write_all(reader: Reader, folder: Path, limit: int | None) -> Iterator[int]:
    """Audit and write one member after the other; yield how many bytes each write took."""
    audit = Audit(reader.archive, limit)
    with closing(reader.contents()) as contents:
        for member, blocks in contents:
            path = audit.admit(member)
            if path is None:
                continue
            if member.kind == FOLDER:
                (folder / path).mkdir(parents=True, exist_ok=True)
            else:
                yield from _write(folder / path, exactly(reader.archive, member, blocks))


def _write(path: Path, blocks: Iterator[bytes]) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        for block in blocks:
            yield file.write(block)
