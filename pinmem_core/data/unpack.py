"""Unpack a prepared dataset of another machine, after checking all of its files."""

import os
import shutil
import tarfile
import zlib
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pinmem_core.data.archives import extract
from pinmem_core.data.card import DatasetCard
from pinmem_core.data.catalog import (
    card_of_user,
    parse_card,
    read_card,
    shipped_cards,
    write_card,
)
from pinmem_core.data.convert import Record, own_files, read_records
from pinmem_core.data.pack import CARD, FORMAT_VERSION, HEADER, IMAGE_DIGESTS, Header
from pinmem_core.data.prepared import (
    LARGEST_SUMMARY,
    MANIFEST,
    RECORDS,
    SCHEMA_VERSION,
    SUMMARY,
    PreparedDataset,
    digest,
    label_space_of,
)
from pinmem_core.data.samples import LabelReading
from pinmem_core.data.verify import check_files
from pinmem_core.documents import json_bytes, parse_json, read_json_object, read_text
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.events import Listener, Notice, Progress, ignore
from pinmem_core.files import staged_folder, write_atomic, write_lines
from pinmem_core.locks import hold_lock, lock_file
from pinmem_core.parallel import parallel_map
from pinmem_core.paths import dataset_root, expanded, folder_size

_LARGEST_CARD = 16 << 20
_LARGEST_DIGESTS = 1 << 28
_SHOWN = 3


def is_pack(path: Path) -> bool:
    """Return whether `path` is a pack, by its first member; `unpack` names one that is compressed.

    An xz file is not looked into: it may claim gigabytes of memory.
    """
    return any(_is_pack(path, mode) for mode in ("r:", "r:gz", "r:bz2"))


def _is_pack(path: Path, mode: Literal["r:", "r:gz", "r:bz2"]) -> bool:
    try:
        with tarfile.open(path, mode) as tar:
            first = tar.next()
    except (OSError, EOFError, zlib.error, tarfile.TarError):
        return False
    return first is not None and first.name == HEADER


def packed_card(path: Path) -> DatasetCard:
    """Return the card of the dataset in a pack.

    Raises:
        DataError: `path` is not a pack, or one that this version of pinmem cannot read.
    """
    return _read_head(path)[1]


def unpack(path: Path, name: str | None = None, *, on_event: Listener = ignore) -> PreparedDataset:
    """Check every file of a pack, then put its dataset in place under `PINMEM_HOME`.

    A prepared dataset of the same name is replaced.

    Args:
        path: File of the pack.
        name: Name of the dataset that it has to hold; None for any.
        on_event: Callback for progress events.

    Raises:
        ConfigError: The pack holds another dataset than `name`.
        DataError: The pack is damaged or hostile, or from another version of pinmem.
        MachineError: The disk is too small, or another process is changing the dataset.
    """
    path = expanded(path).absolute()
    header, card = _read_head(path)
    if name not in (None, card.name):
        raise ConfigError(f"{path} holds the dataset '{card.name}', not '{name}'.")
    root = dataset_root(card.name)
    card_notice = _card_notice(path, card)
    work = root.with_name(f".{root.name}.unpacked")
    with hold_lock(lock_file(root), f"the dataset {card.name}", on_event):
        shutil.rmtree(work, ignore_errors=True)  # left by a killed process
        try:
            folder = extract(path, work, on_event=on_event)
            _check(path, folder, header, on_event)
            with staged_folder(root) as staging:
                for part in (MANIFEST, RECORDS, SUMMARY, "labels", "images"):
                    (folder / part).rename(staging / part)
                if card.name not in shipped_cards():
                    write_card(card, staging / card_of_user(card.name).name)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    if card_notice:
        on_event(Notice(card_notice, warning=True))
    return PreparedDataset.open(card.name)


def _read_head(path: Path) -> tuple[Header, DatasetCard]:
    """Return the header and the card of a pack."""
    if not path.is_file():
        raise DataError(f"there is no file {path}.")
    try:
        with tarfile.open(path, "r:") as tar:
            fields = parse_json(_next_text(tar, HEADER), f"{path}: {HEADER}")
            text = _next_text(tar, CARD)
        header = Header.model_validate(fields)
    except (OSError, tarfile.TarError, ValueError) as error:
        if not _is_pack(path, "r:") and is_pack(path):
            hint = "Decompress it first: 'gunzip' or 'bunzip2'."
            raise DataError(f"{path} is a pack that was compressed.", hint) from error
        hint = "Write it on the machine that has the dataset: 'pinmem data pack DATASET'."
        raise DataError(f"{path} is no pack, or a damaged one.", hint) from error
    if header.format_version != FORMAT_VERSION:
        raise _other_version(path)
    try:
        card = parse_card(text, Path(CARD))
    except ConfigError as error:
        raise _damaged(path, error.message.rstrip(".")) from error
    if card.name != header.dataset:
        raise _damaged(path, f"it says '{header.dataset}', but its card says '{card.name}'")
    return header, card


def _next_text(tar: tarfile.TarFile, name: str) -> str:
    info = tar.next()
    if info is None or info.name != name or info.size > _LARGEST_CARD:
        raise ValueError(f"no {name}")
    file = tar.extractfile(info)
    return file.read().decode() if file else ""


def _card_notice(path: Path, card: DatasetCard) -> str | None:
    """Return a message where the pack brings a new card: later commands download by it."""
    if card.name in shipped_cards():
        return None
    place = card_of_user(card.name)
    with suppress(ConfigError):  # there is none, or a damaged one
        if read_card(place) == card:
            return None
    done = "taken in place of the one that was here" if place.exists() else "now known here"
    addresses = sorted({url for archive in card.archives for url in archive.url})
    sites = f"; it names archives at {', '.join(addresses[:_SHOWN])}" if addresses else ""
    return f"{path} brought its own card of '{card.name}' ({card.title}), {done}{sites}"


def _check(path: Path, folder: Path, header: Header, on_event: Listener) -> None:
    """Refuse a pack, unpacked into `folder`, whose files differ from the packed ones.

    Records get the digests of their images, and `dataset.json` the size of the files.
    """
    try:
        summary = read_json_object(folder / SUMMARY, LARGEST_SUMMARY)
        manifest = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
        reading = LabelReading(space := label_space_of(header.dataset, summary), space)
    except (OSError, ValueError, DataError) as error:
        raise _damaged(path, f"its {SUMMARY} or {MANIFEST} cannot be read") from error
    if summary.get("schema_version") != SCHEMA_VERSION:
        raise _other_version(path)
    records = list(read_records(folder))
    actual = digest((record.sample, record.label_sha256) for record in records)
    described = (summary.get("dataset"), summary.get("digest"), actual, len(records))
    if described != (header.dataset, header.digest, header.digest, header.samples):
        raise _damaged(path, "its parts are of different datasets")
    if manifest != [record.sample.to_json() for record in records]:
        raise _damaged(path, "its manifest is not of its records")
    if (folder / IMAGE_DIGESTS).exists():  # packs of earlier versions have none
        try:
            lines = read_text(folder / IMAGE_DIGESTS, _LARGEST_DIGESTS).splitlines()
        except DataError as error:
            raise _damaged(path, f"its {IMAGE_DIGESTS} cannot be read") from error
        digests = dict(line.split("  ", 1)[::-1] for line in lines if "  " in line)
        images = [record.sample.image.as_posix() for record in records]
        pairs = zip(records, images, strict=True)
        records = [replace(record, image_sha256=digests.get(image, "")) for record, image in pairs]
    with closing(
        parallel_map(lambda record: _problem(folder, record, reading), records)
    ) as problems:
        for done, problem in enumerate(problems, start=1):
            if problem:
                raise _damaged(path, problem)
            on_event(Progress("checking", done, len(records)))
    write_lines(folder / RECORDS, (record.to_json() for record in records))
    summary["bytes"] = sum(folder_size(folder / kind) for kind in ("labels", "images"))
    write_atomic(folder / SUMMARY, json_bytes(summary))


def _problem(folder: Path, record: Record, reading: LabelReading) -> str | None:
    """Return what is wrong with the files of a sample, or None."""
    paths = [record.sample.image, record.sample.label]
    if own_files(record.sample) != paths or any(".." in path.parts for path in paths):
        return f"the files of '{record.sample.id}' would lie outside of the dataset"
    sample = replace(record.sample.below(folder), reading=reading)
    deep = record.image_sha256 is not None
    findings = check_files(sample, record, headers_only=False, deep=deep).findings
    texts = (f"{finding.file} {finding.reason}" for finding in findings)
    return next((text.replace(f"{folder}{os.sep}", "") for text in texts), None)


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is damaged: {reason}.", "Copy it again, or pack it again.")


def _other_version(path: Path) -> DataError:
    return DataError(
        f"{path} was packed by another version of pinmem.",
        "Use the same version on both machines, and pack it again.",
    )
