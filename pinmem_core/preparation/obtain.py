"""Where a dataset's raw files are: unpacked, downloaded or drawn where they are not yet."""

import os
from collections.abc import Sequence
from pathlib import Path

from pinmem_core.acquisition.archives import extract, is_archive, stem
from pinmem_core.acquisition.download import download
from pinmem_core.acquisition.login import Credentials
from pinmem_core.datasets import DatasetCard
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.events import Listener, Notice, Progress, ignore
from pinmem_core.files import staged_folder
from pinmem_core.home import locked, raw_root
from pinmem_core.paths import expanded
from pinmem_core.preparation.layouts import find_samples
from pinmem_core.preparation.prepared import PreparedDataset


def obtain(
    card: DatasetCard,
    sources: Sequence[Path] = (),
    *,
    parts: Sequence[str] = (),
    credentials: Credentials | None = None,
    keep_archives: bool = True,
    on_event: Listener = ignore,
) -> list[Path]:
    """Return the folders that hold a dataset's raw files.

    Args:
        card: The dataset.
        sources: Folders or archives of the user's; archives are unpacked under `PINMEM_HOME`.
            Without any, those of the last time are taken, or the dataset is drawn or downloaded.
        parts: Which parts to download; none means all.
        credentials: For a site with a login.
        keep_archives: Whether downloaded archives stay once they are unpacked.
        on_event: Hears of the progress.

    Raises:
        ConfigError: A person has to fetch the data, or terms are not accepted yet.
        DataError: A source does not exist, or an archive is damaged or hostile.
        MachineError: The disk is too small, or nothing here unpacks the format.
    """
    with locked(f"raw-{card.name}"):
        if sources:
            return [folder for path in sources for folder in _unpacked(card, path, on_event)]
        if card.draw:
            return [_drawn(card, on_event)]
        remembered = sources_of_last_time(card)
        if remembered:
            on_event(Notice(f"taken from {', '.join(map(str, remembered))}, as the last time"))
            return remembered
        return _downloaded(card, parts, credentials, keep_archives, on_event)


def sources_of_last_time(card: DatasetCard) -> list[Path]:
    """Return the user's own folders that the dataset was prepared from, if all are still there."""
    try:
        dataset = PreparedDataset.open(card.name)
    except (ConfigError, DataError):
        return []
    named = [Path(os.path.normpath(dataset.root / text)) for text in dataset.summary["sources"]]
    own = [folder for folder in named if not folder.is_relative_to(raw_root(card.name))]
    return own if all(folder.is_dir() for folder in own) else []


def _unpacked(card: DatasetCard, path: Path, on_event: Listener) -> list[Path]:
    """Return `path` itself, or the folders that its archives were unpacked into."""
    path = expanded(path).absolute()
    if not path.exists():
        raise DataError(f"{path} does not exist.", "Name the folder or archive that you have.")
    if path.is_file():
        if is_archive(path):
            return [extract(path, raw_root(card.name), on_event=on_event)]
        raise DataError(f"{path} is neither a folder nor an archive.", "Name one of them.")
    names = {name for archive in card.archives for name in (archive.file, *archive.aliases)}
    archives = sorted(file for file in path.glob("*") if file.name in names)
    if not archives or _holds(card, path):
        return [path]
    return [extract(archive, raw_root(card.name), on_event=on_event) for archive in archives]


def _holds(card: DatasetCard, folder: Path) -> bool:
    try:
        return find_samples(card, [folder]).pairs > 0
    except DataError:
        return False


def _drawn(card: DatasetCard, on_event: Listener) -> Path:
    folder = raw_root(card.name) / f"drawn-{card.version}"
    if card.draw and not folder.exists():
        with staged_folder(folder) as staging:
            card.draw(staging, lambda done, total: on_event(Progress("drawing", done, total)))
    return folder


def _downloaded(
    card: DatasetCard,
    parts: Sequence[str],
    credentials: Credentials | None,
    keep_archives: bool,
    on_event: Listener,
) -> list[Path]:
    """Download and unpack what is not unpacked yet."""
    raw = raw_root(card.name)
    wanted = [archive for archive in card.archives if not parts or archive.part in parts]
    missing = [archive for archive in wanted if not (raw / stem(archive.file)).exists()]
    if missing or not wanted:
        subset = card.model_copy(update={"archives": tuple(missing)}) if wanted else card
        for path in download(subset, parts=parts, credentials=credentials, on_event=on_event):
            extract(path, raw, on_event=on_event)
            if not keep_archives:
                path.unlink()
    return [raw / stem(archive.file) for archive in wanted]
