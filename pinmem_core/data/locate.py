"""Locating the raw files of a dataset: given, downloaded, extracted or synthetic."""

import os
from collections.abc import Sequence
from pathlib import Path

from pinmem_core.data.access import Credentials
from pinmem_core.data.archives import (
    allowed_growth,
    changing,
    extract,
    is_archive,
    is_unpacked,
    original_name,
    refuse_misnamed,
    resembles_archive,
    stem,
    was_given,
)
from pinmem_core.data.card import DatasetCard
from pinmem_core.data.catalog import name_to_type
from pinmem_core.data.download import download
from pinmem_core.data.layouts import find_samples
from pinmem_core.data.parquet import parquet_files, unpack_parquet
from pinmem_core.data.prepared import SUMMARY, last_summary
from pinmem_core.errors import DataError, shell_join
from pinmem_core.events import Listener, Notice, Progress, ignore
from pinmem_core.files import restore_folder, staged_folder
from pinmem_core.locks import hold_lock, lock_file
from pinmem_core.paths import (
    archives_root,
    dataset_root,
    expanded,
    folder_size,
    iter_files,
    raw_root,
)

_SHOWN = 5
"""Number of archives that a message names."""
_UNKNOWN_KIND = (
    "Unpack it with another tool, and name the folder instead; end the download of what is called "
    "'.part' or '.crdownload' first."
)
_MAX_NESTING = 2
"""Levels of archives within an archive that are unpacked."""


def locate_raw_files(
    card: DatasetCard,
    sources: Sequence[Path] = (),
    *,
    parts: Sequence[str] = (),
    credentials: Credentials | None = None,
    keep_archives: bool = True,
    on_event: Listener = ignore,
) -> list[Path]:
    """Return the folders with a dataset's raw files; unpack, generate or download them if needed.

    Args:
        card: Card of the dataset.
        sources: Folders or archives of the user; archives are unpacked under `PINMEM_HOME`. Without
            any, the sources of the last preparation are used, or the dataset is generated or
            downloaded.
        parts: Parts to download; empty for all.
        credentials: Login for the site.
        keep_archives: Whether downloaded archives stay after unpacking.
        on_event: Callback for progress events.

    Raises:
        ConfigError: A person has to download the data, or terms are not accepted yet.
        DataError: A source does not exist, or an archive is damaged or hostile.
        MachineError: The disk is too small, or no tool unpacks the format.
    """
    lock = lock_file(raw_root(card.name))
    with hold_lock(lock, f"the raw files of {card.name}", on_event):
        if sources:
            return _from_sources(card, sources, on_event)
        if card.generate:
            return [_generated(card, on_event)]
        if own := sources_of_last_time(card):
            on_event(Notice(f"taken from {', '.join(map(str, own))}, as the last time"))
            return own
        return _downloaded(card, parts, credentials, keep_archives, on_event)


def sources_of_last_time(card: DatasetCard) -> list[Path]:
    """Return the user's folders of the last preparation, those of unpacked archives included.

    Returns:
        The folders; none for a dataset that was downloaded, generated, or not prepared before, and
        where they are gone, but a download is here.

    Raises:
        DataError: They are gone or unknown, or the dataset came in a pack, and nothing is
            downloaded.
    """
    summary = last_summary(card.name)
    if summary is None or card.generate:
        return []
    named = summary.get("sources")
    root = dataset_root(card.name)
    folders = [Path(os.path.normpath(root / text)) for text in named or ()]
    own = _without_downloads(card, folders)
    missing = [folder for folder in own if not folder.is_dir()]
    if named and not missing:
        return own
    if _is_downloaded(card):
        return []
    name = name_to_type(card)
    if named == []:
        raise DataError(
            f"{card.name} came in a pack the last time, which holds its images.",
            f"Name the pack: pinmem data prepare {name} --from PACK",
        )
    other = any(archive.url for archive in card.archives)
    raise DataError(
        f"{missing[0]}, from which {card.name} was prepared the last time, is not there."
        if missing
        else f"{root / SUMMARY} is damaged: it does not say from which folders it was prepared.",
        f"Name the folder that holds it: pinmem data prepare {name} --from FOLDER"
        + (f"\nOr download it: pinmem data download {name}" if other else ""),
    )


def _without_downloads(card: DatasetCard, folders: Sequence[Path]) -> list[Path]:
    """Return the folders that were not unpacked from downloads."""
    raw = raw_root(card.name)
    return [
        folder
        for folder in folders
        if card.parquet or not folder.is_relative_to(raw) or was_given(folder)
    ]


def _is_downloaded(card: DatasetCard) -> bool:
    """Return whether pinmem has downloaded an archive of the card, which may be unpacked."""
    for archive in card.archives:
        folder = raw_root(card.name) / stem(archive.file)
        if (archives_root(card.name) / archive.file).exists():
            return True
        if folder.exists() and not was_given(folder):
            return True
    return False


def _from_sources(card: DatasetCard, sources: Sequence[Path], on_event: Listener) -> list[Path]:
    """Return the folders of the user's sources, and report archives that are not unpacked."""
    folders: list[Path] = []
    skipped: list[Path] = []
    for path in sources:
        more, others = _unpacked(card, path, on_event)
        folders += more
        skipped += others
    if not skipped:
        return folders
    names = ", ".join(map(str, skipped[:_SHOWN]))
    names += f" and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    if _holds(card, folders):
        on_event(Notice(f"not unpacked, as the dataset is found without: {names}"))
    elif any(folder.is_relative_to(raw_root(card.name)) for folder in folders):
        on_event(Notice(f"not unpacked, as the card does not name it: {names}", warning=True))
    else:
        known = [path for path in skipped[:_SHOWN] if is_archive(Path(original_name(path.name)))]
        command = shell_join(*(word for path in known for word in ("--from", path)))
        raise DataError(
            f"{', '.join(map(str, sources))} holds no pairs of {card.name}, but archives that its "
            f"card does not name: {names}.",
            f"Name those that hold it: pinmem data prepare {name_to_type(card)} {command}"
            if known
            else _UNKNOWN_KIND,
        )
    return folders


def _unpacked(card: DatasetCard, path: Path, on_event: Listener) -> tuple[list[Path], list[Path]]:
    """Return the folders of a source, and the archives in it that are not unpacked.

    The folders are `path` itself, or those of its unpacked archives.
    """
    path = _existing(path)
    if card.parquet and parquet_files(path):
        return [unpack_parquet(path, raw_root(card.name), card.parquet, on_event=on_event)], []
    archives, skipped = _archives_of(card, path)
    folders = [_extracted(card, archive, on_event) for archive in archives]
    if path.is_dir() and not (folders and _holds(card, folders)):
        folders.insert(0, path)
    return folders, skipped


def plan_raw_files(card: DatasetCard, sources: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the folders of the user's sources, and the archives that are to be unpacked first.

    Raises:
        DataError: A source does not exist, or is neither a folder nor an archive.
    """
    raw = raw_root(card.name)
    folders: list[Path] = []
    packed: list[Path] = []
    for path in map(_existing, sources):
        is_parquet = bool(card.parquet and parquet_files(path))
        for archive in [] if is_parquet else _archives_of(card, path)[0]:
            name = _name_of(card, archive)
            if is_unpacked(archive, raw, name):
                folders.append(raw / stem(name))
            else:
                packed.append(archive)
        if is_parquet or path.is_dir():
            folders.append(path)
    return folders, packed


def _existing(path: Path) -> Path:
    path = expanded(path).absolute()
    if not path.exists():
        raise DataError(f"{path} does not exist.", "Name the folder or archive that you have.")
    return path


def _archives_of(card: DatasetCard, path: Path) -> tuple[list[Path], list[Path]]:
    """Return the archives of a source that are to be unpacked, and the others in its folder.

    Those that the card names are found at any depth, as the files of the dataset are.
    """
    if path.is_file():
        _name_of(card, path)
        return [path], []
    files = [path / name for name in iter_files(path) if resembles_archive(name.rpartition("/")[2])]
    files.sort(key=lambda file: (len(file.parts), file))
    archives = {name: file for file in reversed(files) if (name := _known_name(card, file.name))}
    for file in reversed(files):
        if file.name in archives:
            archives[file.name] = file  # rather than a copy
    there = [file for file in files if file.parent == path]
    if not archives or _holds(card, [path]):
        return [], there
    skipped = [file for file in there if file not in archives.values()]
    return [archives[name] for name in sorted(archives)], skipped


def _known_name(card: DatasetCard, name: str) -> str | None:
    """Return the card's name of an archive, regardless of case and of "(1)"."""
    known = {n.casefold(): n for a in card.archives for n in (a.file, *a.aliases)}
    known |= {n.casefold(): n for n in card.other_archives}
    return known.get(name.casefold()) or known.get(original_name(name).casefold())


def _name_of(card: DatasetCard, archive: Path) -> str:
    """Return the name by which an archive is unpacked."""
    name = _known_name(card, archive.name) or original_name(archive.name)
    if is_archive(Path(name)):
        return name
    if resembles_archive(archive.name):
        raise DataError(
            f"{archive} is an archive of a kind that pinmem does not unpack.", _UNKNOWN_KIND
        )
    refuse_misnamed(archive)
    raise DataError(f"{archive} is neither a folder nor an archive.", "Name one of them.")


def _extracted(card: DatasetCard, archive: Path, on_event: Listener) -> Path:
    """Unpack an archive, and the archives in it, into the dataset's raw folder."""
    name = _name_of(card, archive)
    given = not archive.is_relative_to(archives_root(card.name))
    folder = extract(archive, raw_root(card.name), name=name, given=given, on_event=on_event)
    limit = allowed_growth(archive)
    for _ in range(_MAX_NESTING):
        inner = [path for path in sorted(folder.rglob("*")) if is_archive(path) and path.is_file()]
        if not inner or _holds(card, [folder]):
            break
        with changing(folder):
            for path in inner:
                limit -= folder_size(extract(path, path.parent, limit=limit, on_event=on_event))
                path.unlink()  # the outer archive still holds it
    return folder


def _holds(card: DatasetCard, folders: Sequence[Path]) -> bool:
    try:
        return find_samples(card, folders).pairs > 0
    except DataError:
        return False


def _generated(card: DatasetCard, on_event: Listener) -> Path:
    folder = raw_root(card.name) / f"drawn-{card.version}"
    if card.generate and not restore_folder(folder).exists():
        with staged_folder(folder) as staging:
            card.generate(
                staging, lambda done, total: on_event(Progress("generating", done, total))
            )
    return folder


def _downloaded(
    card: DatasetCard,
    parts: Sequence[str],
    credentials: Credentials | None,
    keep_archives: bool,
    on_event: Listener,
) -> list[Path]:
    """Download and unpack the archives that are not unpacked yet."""
    raw = raw_root(card.name)
    wanted = [archive for archive in card.archives if not parts or archive.part in parts]
    missing = [a for a in wanted if not restore_folder(raw / stem(a.file)).exists()]
    if missing or not wanted:
        subset = card.model_copy(update={"archives": tuple(missing)}) if wanted else card
        for path in download(subset, parts=parts, credentials=credentials, on_event=on_event):
            extract(path, raw, on_event=on_event)
            if not keep_archives:
                path.unlink()
    return [raw / stem(archive.file) for archive in wanted]
