"""Preparation of a dataset from raw files, resuming earlier runs."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pinmem_core.data.card import DatasetCard, Layout
from pinmem_core.data.catalog import card_of_user, get_card, shipped_cards, write_card
from pinmem_core.data.convert import (
    Conversion,
    Defect,
    Record,
    Reencoding,
    file_digest,
    is_intact,
    own_files,
    placed,
    portable,
    read_records,
    totals,
)
from pinmem_core.data.layouts import Found, RawSample, find_samples, refuse_disguised
from pinmem_core.data.locate import obtain
from pinmem_core.data.prepared import (
    MANIFEST,
    RECORDS,
    SCHEMA_VERSION,
    SUMMARY,
    PreparedDataset,
    Selection,
)
from pinmem_core.documents import json_text
from pinmem_core.errors import DataError
from pinmem_core.events import Listener, Notice, Progress, ignore
from pinmem_core.files import link_or_copy, resumable_folder, write_atomic, write_lines
from pinmem_core.home import dataset_root
from pinmem_core.locks import hold_lock, lock_file
from pinmem_core.parallel import parallel_map
from pinmem_core.paths import as_id, expanded
from pinmem_core.version import __version__

HELD_OUT = 5
"""Where nobody published a split, one sample in so many is held out for validation."""

_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand(entries: Sequence[str]) -> Iterator[str]:
    """Yield the ids of a split list; "00001..00010" stands for ten of them."""
    for entry in entries:
        match = _RANGE.fullmatch(entry)
        if not match:
            yield as_id(entry)
            continue
        first, last = match.groups()
        for number in range(int(first), int(last) + 1):
            yield f"{number:0{len(first)}}"


def split_of_each(
    samples: Sequence[RawSample], lists: Mapping[str, Sequence[str]]
) -> dict[str, str | None]:
    """Return each sample's split by id; None for one that the lists leave out.

    Lists overrule folders. Without either, the last fifth of each domain is "val": a contiguous
    part, because neighbouring frames of a drive are nearly the same.
    """
    if lists:
        listed = {sample_id: split for split, ids in lists.items() for sample_id in expand(ids)}
        return {sample.id: listed.get(sample.id) for sample in samples}
    by_domain: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        by_domain[sample.domain].append(sample.id)
    held_out = {
        sample_id
        for ids in by_domain.values()
        for sample_id in ids[len(ids) - len(ids) // HELD_OUT :]
    }
    return {s.id: s.split or ("val" if s.id in held_out else "train") for s in samples}


@dataclass(frozen=True)
class _Planned:
    raw: RawSample
    split: str


def prepare(
    card: DatasetCard,
    folders: Sequence[Path],
    *,
    label_map: str | None = None,
    reencoding: Reencoding | None = None,
    strict: bool = False,
    hash_images: bool = False,
    jobs: int | None = None,
    on_event: Listener = ignore,
) -> PreparedDataset:
    """Verify and remap a dataset, and write its prepared form under `PINMEM_HOME`.

    Samples with a defect are left out and listed with the reason. The prepared dataset replaces an
    older one only when it is complete; samples whose files have not changed since are taken over
    from it, and from a run that was interrupted.

    Args:
        card: The dataset.
        folders: Where its files lie, at any depth.
        label_map: One of the card's; None for the default of the layout that is found.
        reencoding: How images are written anew; None leaves them where they are.
        strict: Refuse the dataset at the first defect instead of leaving samples out.
        hash_images: Record the SHA-256 of every image, which `verify` can then compare.
        jobs: Samples converted at once; None for one a core.
        on_event: Hears of the progress.

    Raises:
        ConfigError: The card has no such label map.
        DataError: The folders do not hold the dataset, or nothing in it is usable.
        MachineError: Another process is preparing it.
    """
    root = dataset_root(card.name)
    folders = [expanded(folder).absolute() for folder in folders]
    with hold_lock(lock_file(root), f"the dataset {card.name}", on_event):
        found = find_samples(card, folders, label_map)
        refuse_disguised(card, found)
        _announce_layouts(found, on_event)
        with resumable_folder(root) as work:

            def conversion_by(layout: Layout) -> Conversion:
                used = card.label_map(found.label_map_of(layout))
                return Conversion(layout.encoding, used, reencoding, root, work, hash_images)

            conversion = conversion_by(found.layout)
            others = {split: conversion_by(lay) for split, lay in found.other_layouts.items()}
            planned, defects = _plan(card, found)
            records, more = _convert_all(planned, conversion, others, jobs, on_event)
            defects += more
            _refuse_unusable(card, records, defects, strict=strict)
            size = _sweep(work, records)
            _write(card, found, folders, conversion, others, records, defects, size)
    return PreparedDataset.open(card.name)


@dataclass(frozen=True)
class Survey:
    """What `prepare` would work on.

    Attributes:
        layout: Name of the layout that fits.
        label_map: Name of the label map.
        counts: Complete pairs by split.
        defects: What would be left out, as far as names tell.
    """

    layout: str
    label_map: str
    counts: dict[str, int]
    defects: list[Defect]


def survey(card: DatasetCard, folders: Sequence[Path], label_map: str | None = None) -> Survey:
    """Return what `folders` hold, by the names of the files alone.

    Raises:
        ConfigError: The card has no such label map.
        DataError: The folders do not hold the dataset.
    """
    found = find_samples(card, [expanded(folder) for folder in folders], label_map)
    refuse_disguised(card, found)
    planned, defects = _plan(card, found)
    lonely = [p.raw for p in planned if p.raw.label is None]
    defects += [Defect(str(raw.image), raw.lack, "missing partner") for raw in lonely]
    counts = Counter(p.split for p in planned if p.raw.label)
    name = found.label_map_of(found.layout)
    return Survey(found.layout.name, name, dict(sorted(counts.items())), defects)


def prepare_synthetic(selections: Iterable[str], on_event: Listener = ignore) -> None:
    """Prepare the synthetic datasets of `selections` that are not prepared yet.

    Raises:
        ConfigError: A selection is not valid.
    """
    for name in {Selection.parse(text).dataset: None for text in selections}:
        card = get_card(name)
        if card.draw and not (dataset_root(name) / SUMMARY).exists():
            prepare(card, obtain(card, on_event=on_event), on_event=on_event)


def _announce_layouts(found: Found, on_event: Listener) -> None:
    if found.is_assumed:
        message = (
            f"the labels are taken for '{found.layout.name}', because they hold no larger values; "
            "if they are of another version, name its map with --label-map"
        )
        on_event(Notice(message, warning=True))
    if found.left_splits:
        message = f"left out, as their labels hold no trainIds: {', '.join(found.left_splits)}"
        on_event(Notice(message, warning=True))
    for split, layout in found.other_layouts.items():
        on_event(
            Notice(
                f"the labels of the split {split} are read by the layout '{layout.name}', those of "
                f"the others by '{found.layout.name}'"
            )
        )


def _plan(card: DatasetCard, found: Found) -> tuple[list[_Planned], list[Defect]]:
    """Return what to convert, and what the card or the folders rule out."""
    known = {
        sample_id: defect.reason
        for defect in card.known_defects
        if defect.exclude
        for sample_id in expand(defect.samples)
    }
    splits = split_of_each(found.samples, card.split_lists)
    planned = []
    defects = [Defect(str(p), "its image is missing", "missing partner") for p in found.orphans]
    defects += [Defect(str(p), "the sample was found before", "double") for p in found.doubles]
    for raw in found.samples:
        split = splits[raw.id]
        if raw.id in known:
            defects.append(Defect(str(raw.image), known[raw.id], "known defect"))
        elif split is None:
            defects.append(Defect(str(raw.image), "no split lists it", "not listed"))
        else:
            planned.append(_Planned(raw, split))
    return planned, defects


def _convert_all(
    planned: Sequence[_Planned],
    conversion: Conversion,
    others: Mapping[str, Conversion],
    jobs: int | None,
    on_event: Listener,
) -> tuple[list[Record], list[Defect]]:
    """Convert what no earlier run has converted; every result is noted at once.

    Args:
        planned: The samples.
        conversion: How they are converted.
        others: How those of some splits, as folders tell them, are converted instead.
        jobs: Samples converted at once; None for one a core.
        on_event: Callback for progress events.
    """
    earlier = _earlier(conversion)
    records: list[Record] = []
    defects: list[Defect] = []

    def convert(item: _Planned) -> Record | Defect:
        how = others.get(item.raw.split or "", conversion)
        taken = _take_over(earlier, item, how)
        return taken or how.convert(item.raw, item.split)

    with (
        (conversion.folder / RECORDS).open("a", encoding="utf-8") as journal,
        closing(parallel_map(convert, planned, jobs)) as results,
    ):
        journal.write("\n")  # after what may be half a line
        for done, result in enumerate(results, start=1):
            if isinstance(result, Defect):
                defects.append(result)
            else:
                records.append(result)
                journal.write(f"{result.to_json()}\n")
                journal.flush()
            on_event(Progress("preparing", done, len(planned)))
    return records, defects


def _earlier(conversion: Conversion) -> dict[str, tuple[Path, Record]]:
    """Return what earlier runs converted, by key: the folder that holds it and its record."""
    known = {}
    for folder in (conversion.root, conversion.folder):
        for record in read_records(folder):
            known[record.key] = folder, record
    return known


def _take_over(
    earlier: Mapping[str, tuple[Path, Record]], item: _Planned, conversion: Conversion
) -> Record | None:
    """Return the record of a sample that need not be converted again, its files in place."""
    folder, record = earlier.get(conversion.key(item.raw), (None, None))
    if folder is None or record is None or not is_intact(record, folder):
        return None
    sample = replace(placed(record.sample), split=item.split, domain=item.raw.domain)
    for old, new in zip(own_files(record.sample), own_files(sample), strict=True):
        if folder / old != conversion.folder / new:
            link_or_copy(folder / old, conversion.folder / new)
    sha256 = record.image_sha256
    if conversion.hash_images and sha256 is None:
        sha256 = file_digest(conversion.folder / sample.image)
    return replace(record, sample=sample, image_sha256=sha256)


def _refuse_unusable(
    card: DatasetCard, records: Sequence[Record], defects: Sequence[Defect], *, strict: bool
) -> None:
    faults = [defect for defect in defects if defect.rule not in ("known defect", "not listed")]
    if records and not (strict and faults):
        return
    first = (faults or defects)[0]
    raise DataError(
        f"{len(faults or defects)} of {len(records) + len(defects)} samples of {card.name} cannot "
        f"be used; the first: {first.file}: {first.reason}.",
        "Nothing was written." + (" Without --strict they are left out." if records else ""),
    )


def _sweep(work: Path, records: Iterable[Record]) -> int:
    """Remove what an interrupted run has left and this one does not want.

    Returns:
        Bytes of the labels and images that stay.
    """
    wanted = {str(path) for record in records for path in own_files(record.sample)}
    total = 0
    for kind in ("labels", "images"):
        for folder, _, names in os.walk(work / kind, topdown=False):
            below = os.path.relpath(folder, work)
            for name in names:
                path = Path(folder, name)
                if f"{below}{os.sep}{name}" in wanted:
                    total += path.stat().st_size
                else:
                    path.unlink()
            with suppress(OSError):  # usually it is not empty
                Path(folder).rmdir()
    return total


def _write(
    card: DatasetCard,
    found: Found,
    folders: Sequence[Path],
    conversion: Conversion,
    others: Mapping[str, Conversion],
    records: Sequence[Record],
    defects: Sequence[Defect],
    size: int,
) -> None:
    def label_map_by(layout: Layout, used: Conversion) -> dict[str, str]:
        return {"name": found.label_map_of(layout), "digest": used.label_map.digest}

    summary: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "dataset": card.name,
        "title": card.title,
        "card_version": card.version,
        "layout": found.layout.name,
        "encoding": conversion.encoding,
        "label_map": label_map_by(found.layout, conversion),
        "other_layouts": {
            split: {"layout": layout.name, "label_map": label_map_by(layout, others[split])}
            for split, layout in found.other_layouts.items()
        },
        "reencoding": asdict(conversion.reencoding) if conversion.reencoding else None,
        "sources": [portable(folder, conversion.root) for folder in folders],
        "bytes": size,
        **totals(records),
        "excluded": [asdict(defect) for defect in sorted(defects, key=lambda d: d.file)],
        "pinmem_version": __version__,
    }
    write_lines(conversion.folder / RECORDS, (r.to_json() for r in records))
    write_lines(conversion.folder / MANIFEST, (r.sample.to_json() for r in records))
    if card.name not in shipped_cards():
        write_card(card, conversion.folder / card_of_user(card.name).name)
    write_atomic(conversion.folder / SUMMARY, (json_text(summary, indent=2) + "\n").encode())
