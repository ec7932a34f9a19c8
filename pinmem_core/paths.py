"""Files and names as they come from outside: listing folders, and names as clean text."""

import hashlib
import os
import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pinmem_core.errors import DataError

_SYSTEM_NAMES = {
    "$recycle.bin",
    "@eadir",
    "__macosx",
    "desktop.ini",
    "lost+found",
    "system volume information",
    "thumbs.db",
}
"""What systems write into any folder: thumbnails, waste bins, halves of macOS files."""
_LONGEST_NAME = 240
"""Bytes of a name to which a suffix is still added; file systems take 255."""

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
_NOT_PORTABLE = re.compile(r'[\\/:*?"<>|]|[. ]$')
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)", re.IGNORECASE)


def expanded(path: str | Path) -> Path:
    """Return `path` with a leading `~` or `~user` resolved; unknown users leave it as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path's own raises for unknown users


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that systems write by themselves."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def iter_files(folder: Path, without: Path | None = None) -> Iterator[str]:
    """Yield the paths of the regular files below a folder, relative to it, in no special order.

    Hidden files and folders are passed over, and so are those that systems write by themselves.
    Links are followed, as datasets are often linked together, except a link to a folder that
    contains the link. A folder that can be reached in several ways is listed once, by a path
    without links where there is one. Pipes, sockets and devices are no files.

    Args:
        folder: Where to look.
        without: A folder to leave out with all that it holds.

    Raises:
        DataError: A folder cannot be listed.
    """
    seen = {_identity(str(without))} if without is not None and without.exists() else set()
    folders, links = deque([""]), deque[str]()
    while folders or links:
        place = (folders or links).popleft()
        path = os.path.join(folder, place)  # noqa: PTH118  a million Paths take seconds
        try:
            identity = _identity(path)
            if identity in seen:
                continue
            seen.add(identity)
            with os.scandir(path) as entries:
                kinds = [(_kind(entry), entry.name) for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            continue  # removed since its parent was listed
        except OSError as error:
            raise DataError(
                f"{path} cannot be listed: {error.strerror}.",
                "Make it readable, or name the folders next to it.",
            ) from error
        yield from (place + name for kind, name in kinds if kind == "file")
        folders.extend(sorted(f"{place}{name}/" for kind, name in kinds if kind == "folder"))
        links.extend(sorted(f"{place}{name}/" for kind, name in kinds if kind == "link"))


def folder_size(folder: Path, *, deep: bool = True) -> int:
    """Return the size of all files below `folder`, links not followed; 0 where nothing can be read.

    Args:
        folder: Where to look.
        deep: Count the files in its folders, too.
    """
    total = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                with suppress(FileNotFoundError):  # another process is replacing the folder
                    total += entry.stat(follow_symlinks=False).st_size
            elif deep:
                total += folder_size(Path(entry.path))
    return total


def _kind(entry: os.DirEntry[str]) -> Literal["file", "folder", "link"] | None:
    """Return what an entry of a folder is: "link" for one to a folder, None for what is left out.

    Only links are looked up on disk; the kind of everything else is in the folder itself.
    """
    if is_hidden(entry.name):
        return None
    if entry.is_file(follow_symlinks=False):
        return "file"
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    if not entry.is_symlink():
        return None  # a pipe, for instance
    path = Path(entry.path)
    if path.is_file():
        return "file"
    return "link" if path.is_dir() and not _lies_below_its_target(path) else None


def _identity(path: str) -> object:
    """Return what two paths to the same folder have in common."""
    status = os.stat(path)  # noqa: PTH116
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _lies_below_its_target(link: Path) -> bool:
    return link.parent.resolve().is_relative_to(link.resolve())


def as_text(name: str) -> str:
    """Return a name or path in the form in which names are compared, shown and stored.

    Accents are composed (NFC), as some systems store them apart from their letters. Control
    characters, and bytes that are not UTF-8, become "%" and two hexadecimal digits.
    """
    if name.isascii() and name.isprintable():
        return name
    return _UNPRINTABLE.sub(_in_percent, unicodedata.normalize("NFC", name))


def as_id(text: str) -> str:
    """Return the id of a sample: text that can be, or be a part of, a file's name."""
    return _bounded(as_text(text).replace("\\", "%5C").replace("/", "%2F"))


def as_portable_name(name: str) -> str:
    """Return a file's name that every system takes, the same for the same `name`."""
    name = _NOT_PORTABLE.sub(_in_percent, as_text(name))
    return _bounded(f"_{name}" if _DEVICE.match(name) else name)


def _bounded(text: str) -> str:
    """Return text that fits into a file's name; of a longer one the end becomes a digest."""
    data = text.encode()
    if len(data) <= _LONGEST_NAME:
        return text
    digest = hashlib.sha256(data).hexdigest()[:16]
    return f"{data[: _LONGEST_NAME - 17].decode(errors='ignore')}~{digest}"


def _in_percent(match: re.Match[str]) -> str:
    """Return a character as "%" and digits; bytes that are no UTF-8 keep their value."""
    escaped = "\udc80" <= match[0] <= "\udcff"
    data = match[0].encode(errors="surrogateescape" if escaped else "surrogatepass")
    return "".join(f"%{byte:02X}" for byte in data)
