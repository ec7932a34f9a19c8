"""RAR archives through libarchive, which decompresses most of them."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pinmem_core.acquisition.members import (
    BLOCK,
    FILE,
    FOLDER,
    Contents,
    Member,
    Reader,
    special_kind,
)
from pinmem_core.acquisition.rar_errors import failure

_RAR5 = b"Rar!\x1a\x07\x01"

logging.getLogger("libarchive").addHandler(logging.NullHandler())  # else its warnings are printed


def libarchive() -> ModuleType | None:
    """Return Python's module for libarchive, None where the system lacks the library."""
    try:
        return import_module("libarchive")
    except (ImportError, OSError, TypeError, AttributeError):
        return None


class LibarchiveReader(Reader):
    """Reads a RAR archive through libarchive.

    Args:
        archive: The file.
        library: The module.
    """

    def __init__(self, archive: Path, library: ModuleType) -> None:
        super().__init__(archive)
        self._library = library

    def listing(self) -> Iterator[Member]:
        """Yield the members that libarchive finds.

        Raises:
            DataError: A header is damaged.
            UnsupportedError: libarchive does not know this kind of RAR.
        """
        with self._open() as entries:
            for entry in entries:
                yield _member(entry)

    def contents(self) -> Contents:
        """Yield the members with their bytes, which may be wrong in a damaged archive.

        Raises:
            DataError: The archive is damaged.
            UnsupportedError: libarchive does not know this kind of RAR.
        """
        with self._open() as entries:
            for entry in entries:
                yield _member(entry), self._blocks(entry)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        with self.archive.open("rb") as file:
            version = "rar5" if file.read(len(_RAR5)) == _RAR5 else "rar"
        path = str(self.archive)
        with (
            self._errors_named(),
            self._library.file_reader(path, format_name=version, filter_name="none") as entries,
        ):
            yield entries

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except self._library.ArchiveError as error:
            raise failure(self.archive, "libarchive", str(error.msg)) from error

    def _blocks(self, entry: Any) -> Iterator[bytes]:
        with self._errors_named():
            yield from entry.get_blocks(BLOCK)


def _member(entry: Any) -> Member:
    name = os.fsdecode(entry.pathname or "")
    if entry.isdir:
        return Member(name, kind=FOLDER)
    kind = special_kind(entry.mode) or ("a hard link" if entry.islnk else FILE)
    return Member(name, entry.size or 0, kind)
