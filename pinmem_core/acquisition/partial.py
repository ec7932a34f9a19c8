"""The beginning of a file that is being fetched, and where it came from."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pinmem_core.addresses import HIDDEN, masked
from pinmem_core.documents import read_json_object
from pinmem_core.errors import DataError, MachineError
from pinmem_core.files import write_whole


def address_of(url: str) -> str:
    """Return what stands for `url` in a record: no secret, but as distinct as the address."""
    shown = masked(url)
    if HIDDEN not in shown:
        return shown
    return f"{shown}#{hashlib.sha256(url.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Origin:
    """Which bytes a partial file is the beginning of, as the site told."""

    url: str
    etag: str | None = None
    last_modified: str | None = None
    total: int | None = None

    @classmethod
    def told(cls, url: str, headers: Mapping[str, str], total: int | None) -> "Origin":
        """Return what the `headers` of an answer from `url` tell."""
        return cls(url, headers.get("ETag"), headers.get("Last-Modified"), total)

    @property
    def validator(self) -> str | None:
        """What asks the site whether the file is still the same; a weak tag cannot."""
        strong = self.etag and not self.etag.startswith("W/")
        return self.etag if strong else self.last_modified

    def agrees(self, other: "Origin") -> bool:
        """Return whether both may be the same bytes."""
        totals = {self.total, other.total} - {None}
        tags = {self.etag, other.etag} - {None} if self.url == other.url else set()
        return len(totals) < 2 and len(tags) < 2


class Partial:
    """The `.part` file beside a file to come, with a record of its origin.

    All methods that write raise MachineError where the disk does not take it.

    Args:
        path: The file to come.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.part")
        self._record = path.with_name(f"{path.name}.part.json")

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def origin(self) -> Origin | None:
        """Where they came from, or None where that is not known."""
        try:
            origin = Origin(**read_json_object(self._record))
        except (DataError, TypeError):
            return None
        texts = (origin.url, origin.etag or "", origin.last_modified or "")
        right = all(isinstance(text, str) for text in texts)
        return origin if right and isinstance(origin.total, int | None) else None

    def belongs_to(self, origin: Origin) -> None:
        """Remember where the bytes come from."""
        with self._writing():
            write_whole(self._record, json.dumps(asdict(origin)).encode())

    @contextmanager
    def appending(self) -> Iterator[Callable[[bytes], None]]:
        """Yield a function that appends bytes; they outlive the process once it returns."""
        with self._writing():
            file = self.path.open("ab")

        def append(block: bytes) -> None:
            with self._writing():
                file.write(block)
                file.flush()

        with file:
            yield append

    def discard(self) -> None:
        """Forget all."""
        with self._writing():
            self.path.unlink(missing_ok=True)
            self._record.unlink(missing_ok=True)

    def become(self, path: Path) -> None:
        """Give the file its name, now that it is complete; it is safe on disk before."""
        with self._writing():
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
            self.path.replace(path)
            self._record.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "Make room, or name another folder; what is there stays, and the rest follows."
            raise MachineError(f"cannot write {self.path}: {error.strerror}.", hint) from error
