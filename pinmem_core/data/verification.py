"""Verification of downloaded files by size, checksum and type."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from pinmem_core.data.archives import check_archive, is_archive
from pinmem_core.data.card import Archive
from pinmem_core.data.thread_pool import Meter
from pinmem_core.errors import DataError
from pinmem_core.events import Listener, Notice
from pinmem_core.files import write_atomic

_BLOCK = 2**20


@dataclass(frozen=True)
class Checksum:
    """A hexadecimal digest and how it is calculated, "sha256" or "md5"."""

    algorithm: str
    hex: str


def published(archive: Archive) -> Checksum | None:
    """Return the best checksum that the card tells, if any."""
    if archive.sha256:
        return Checksum("sha256", archive.sha256)
    return Checksum("md5", archive.md5) if archive.md5 else None


def recorded(path: Path) -> Checksum | None:
    """Return the checksum that `record` left beside `path`, if any."""
    try:
        match = re.match(r"[0-9a-f]{64}\b", _record_of(path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return Checksum("sha256", match[0]) if match else None


def record(archive: Archive, path: Path, bytes_at: Path, on_event: Listener) -> None:
    """Leave a checksum beside `path` for what nobody publishes one for.

    Args:
        archive: What the card tells.
        path: The file's place.
        bytes_at: Where its bytes are now.
        on_event: Hears of the progress.
    """
    if not published(archive):
        digest = _digest(bytes_at, "sha256", archive.file, on_event)
        write_atomic(_record_of(path), f"{digest}  {path.name}\n".encode())


def find_fault(
    archive: Archive, path: Path, expected: Checksum | None, on_event: Listener
) -> str | None:
    """Return what is wrong with the bytes at `path`, as an end of a sentence, or None."""
    size = path.stat().st_size
    if archive.bytes not in (None, size):
        return f"has {size} bytes instead of {archive.bytes}"
    if not expected:
        return _damage(archive, path)
    digest = _digest(path, expected.algorithm, archive.file, on_event)
    if digest == expected.hex:
        return None
    return f"has the {expected.algorithm} {digest} instead of {expected.hex}"


def find_fault_of_finished(archive: Archive, path: Path, on_event: Listener) -> str | None:
    """Return what is wrong with a file that has its name, or None.

    Where no checksum is published, the one recorded when it was fetched counts; a file that was
    put there by hand is tested once, and recorded.
    """
    expected = published(archive) or recorded(path)
    fault = find_fault(archive, path, expected, on_event)
    if not fault and not expected:
        record(archive, path, path, on_event)
    return fault


def set_aside(path: Path, fault: str, on_event: Listener) -> None:
    """Rename a wrong file, so that nobody takes it for right and nobody misses it."""
    wrong = path.with_name(f"{path.name}.wrong")
    number = 2
    while wrong.exists():
        wrong = path.with_name(f"{path.name}.wrong-{number}")
        number += 1
    path.rename(wrong)
    _record_of(path).unlink(missing_ok=True)
    message = f"{path} {fault}; it is now called {wrong.name}, and fetched anew."
    on_event(Notice(message, warning=True))


def _damage(archive: Archive, path: Path) -> str | None:
    """Return what testing an archive finds; of other files nothing can be told."""
    if not is_archive(Path(archive.file)):
        return None
    try:
        check_archive(path, archive.file)
    except DataError as error:
        return error.message.removeprefix(f"{path} ").removesuffix(".")
    return None


def _digest(path: Path, algorithm: str, name: str, on_event: Listener) -> str:
    meter = Meter(f"checking {name}", path.stat().st_size, on_event)
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            meter.show(file.tell())
    meter.show(path.stat().st_size, now=True)
    return digest.hexdigest()


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
