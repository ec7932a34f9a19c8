"""Paths and names: listing folders, portable names, and the home folder of pinmem."""

import hashlib
import json
import os
import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from platformdirs import user_data_path

from pinmem_core.documents import read_json_lines, read_json_object
from pinmem_core.errors import DataError, MachineError
from pinmem_core.events import ignore
from pinmem_core.files import append_line, restore_folder

_SYSTEM_NAMES = {
    "$recycle.bin",
    "@eadir",
    "__macosx",
    "desktop.ini",
    "lost+found",
    "system volume information",
    "thumbs.db",
}
"""Files and folders that operating systems create, in lower case."""
_MAX_NAME_BYTES = 240  # file systems allow 255; the rest is for suffixes

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
_NOT_PORTABLE = re.compile(r'[\\/:*?"<>|]|[. ]$')
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)", re.IGNORECASE)


def expanded(path: str | Path) -> Path:
    """Return `path` with a leading `~` or `~user` expanded, unless the user is unknown."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path's own raises for unknown users


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden or created by an operating system."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def iter_files(folder: Path, without: Path | None = None) -> Iterator[str]:
    """Yield the relative paths of the regular files in a folder and its subfolders, unordered.

    Hidden files and folders (`is_hidden`) are skipped. Symbolic links are followed, except a link
    to one of its own parent folders. A folder with several paths is listed once, if possible by a
    path without links.

    Args:
        folder: The folder.
        without: Subfolder to skip.

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
                "Make it readable, or give the other folders one by one.",
            ) from error
        yield from (place + name for kind, name in kinds if kind == "file")
        folders.extend(sorted(f"{place}{name}/" for kind, name in kinds if kind == "folder"))
        links.extend(sorted(f"{place}{name}/" for kind, name in kinds if kind == "link"))


def folder_size(folder: Path, *, deep: bool = True) -> int:
    """Return the total size of the files in `folder` in bytes, without following links.

    Args:
        folder: The folder. An unreadable folder counts as 0.
        deep: Whether to include its subfolders.
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
    """Return the kind of an entry: "link" for a link to a folder, None to skip it."""
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
    """Return a value that is equal for two paths of the same folder."""
    status = os.stat(path)  # noqa: PTH116
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _lies_below_its_target(link: Path) -> bool:
    return link.parent.resolve().is_relative_to(link.resolve())


def as_text(name: str) -> str:
    """Return a name or path in the form for comparison, display and storage.

    Accents are composed (NFC). Control characters, and bytes that are not UTF-8, are
    percent-encoded.
    """
    if name.isascii() and name.isprintable():
        return name
    return _UNPRINTABLE.sub(_in_percent, unicodedata.normalize("NFC", name))


def as_id(text: str) -> str:
    """Return `text` as the id of a sample, which is valid in file names."""
    return _bounded(as_text(text).replace("\\", "%5C").replace("/", "%2F"))


def as_domain(text: str) -> str:
    """Return `text` as a domain; "@" would begin a split and "," another selection."""
    return as_text(text).strip().replace("@", "-").replace(",", "-")


def as_portable_name(name: str) -> str:
    """Return a file name that is valid on every operating system, as a function of `name`."""
    name = _NOT_PORTABLE.sub(_in_percent, as_text(name))
    return _bounded(f"_{name}" if _DEVICE.match(name) else name)


def _bounded(text: str) -> str:
    """Return text of at most `_MAX_NAME_BYTES`, with a digest for the rest."""
    data = text.encode()
    if len(data) <= _MAX_NAME_BYTES:
        return text
    digest = hashlib.sha256(data).hexdigest()[:16]
    return f"{data[: _MAX_NAME_BYTES - 17].decode(errors='ignore')}~{digest}"


def _in_percent(match: re.Match[str]) -> str:
    """Percent-encode a character; bytes that are not UTF-8 keep their value."""
    escaped = "\udc80" <= match[0] <= "\udcff"
    data = match[0].encode(errors="surrogateescape" if escaped else "surrogatepass")
    return "".join(f"%{byte:02X}" for byte in data)


def home() -> Path:
    """Return the home folder of pinmem, which may not exist yet.

    Raises:
        MachineError: `PINMEM_HOME` is not set and the user has no home folder.
    """
    if chosen := os.environ.get("PINMEM_HOME"):
        return expanded(chosen).absolute()
    with suppress(RuntimeError):
        folder = user_data_path("pinmem")
        if folder.is_absolute():  # older versions of platformdirs do not expand "~"
            return folder
    raise MachineError("this user has no home folder.", "Set PINMEM_HOME to a folder.")


def dataset_root(name: str) -> Path:
    """Return the folder of the prepared dataset `name`, which may not exist."""
    return restore_folder(home() / "datasets" / name)


def archives_root(name: str) -> Path:
    """Return the folder of the downloaded archives of the dataset `name`, which may not exist."""
    return home() / "archives" / name


def raw_root(name: str) -> Path:
    """Return the folder of the unpacked files of the dataset `name`, which may not exist."""
    return home() / "raw" / name


def runs_root() -> Path:
    """Return the default folder of runs."""
    return home() / "runs"


def register_run(run: Path, *, part_of: str | None = None) -> None:
    """Register a finished run in any folder, so that `newest_run` finds it.

    Args:
        run: Folder of the run.
        part_of: "demo" or "study" for a run of an experiment, which `newest_run` never returns. It
            may be registered before it starts.
    """
    runs_root().mkdir(parents=True, exist_ok=True)
    part = {"part_of": part_of} if part_of else {}
    append_line(_run_log(), json.dumps({"run": str(run.absolute()), **part}))


def registered_runs() -> dict[Path, str | None]:
    """Return the registered runs that still exist, in the order of their last registration.

    The values are "demo" or "study" for runs of an experiment, else None. A run is one of the demo
    or of a sweep if it was registered as such before it started; a run whose sources are all of the
    synthetic dataset "demo" is one of the demo as well.
    """
    entries = read_json_lines(
        _run_log(), lambda line: (Path(line["run"]), line.get("part_of")), ignore
    )
    runs: dict[Path, str | None] = {}
    for run, part_of in entries:
        runs[run] = runs.pop(run, None) or part_of
    return {run: part or part_by_sources(run) for run, part in runs.items() if run.is_dir()}


def part_by_sources(run: Path) -> str | None:
    """Return "demo" for a run that was trained on nothing but the dataset "demo", else None."""
    try:
        sources = list(map(str, read_json_object(run / "config.json")["sources"]))
    except (DataError, KeyError, TypeError):
        return None
    names = {re.split("[:@]", source)[0] for source in sources}
    return "demo" if names == {"demo"} else None


def newest_run() -> Path:
    """Return the folder of the last finished run that still exists, without demo and study runs.

    `registered_runs` says how these are recognized.

    Raises:
        DataError: There is no such run.
    """
    for run, part_of in reversed(registered_runs().items()):
        if part_of is None:
            return run
    raise DataError(
        f"there is no trained model in {home()} yet; runs of the demo and of sweeps do not count.",
        "'pinmem runs' lists all runs; name one of them.",
    )


def find_run(name: str) -> Path:
    """Return the folder of a run by its path or by its name under `runs_root`.

    Raises:
        DataError: The folder does not exist.
        MachineError: The path does not exist, and the user has no home folder.
    """
    for place in (Path, runs_root):  # an existing path needs no home folder
        folder = restore_folder(place() / expanded(name))
        if folder.is_dir():
            return folder
    raise DataError(
        f"there is no run '{name}', neither as a folder nor in {runs_root()}.",
        "'pinmem runs' lists all runs.",
    )


def newest_unfinished_run() -> Path:
    """Return the unfinished run under `runs_root` that started last.

    Raises:
        DataError: There is no unfinished run.
    """
    begun = [path.parent for path in runs_root().glob("*/config.json")]
    unfinished = [run for run in begun if not (run / "scores.json").exists()]
    if not unfinished:
        raise DataError(
            f"there is no unfinished run in {runs_root()}.",
            "Give the folder of a run in another place.",
        )
    return max(unfinished, key=lambda run: (run / "config.json").stat().st_mtime)


def _run_log() -> Path:
    return runs_root() / "finished.jsonl"
