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
from pinmem_core.data.encodings.coco import folded, read_coco_file
from pinmem_core.data.layouts import LayoutMatch, RawSample, find_samples, refuse_disguised
from pinmem_core.data.locate import locate_raw_files
from pinmem_core.data.parquet import count_rows, parquet_files
from pinmem_core.data.prepared import (
    MANIFEST,
    RECORDS,
    SCHEMA_VERSION,
    SUMMARY,
    PreparedDataset,
    Selection,
    last_summary,
    options_of,
)
from pinmem_core.data.state import differences, is_complete
from pinmem_core.documents import json_bytes
from pinmem_core.errors import DataError, shell_join
from pinmem_core.events import Listener, Notice, Progress, ignore
from pinmem_core.files import link_or_copy, resumable_folder, write_atomic, write_lines
from pinmem_core.locks import hold_lock, lock_file
from pinmem_core.parallel import parallel_map
from pinmem_core.paths import as_id, dataset_root, expanded
from pinmem_core.version import __version__

HELD_OUT = 5
"""One in this many samples is held out for validation where no split is published."""

_NAMED = 3
"""Missing images that a message names."""
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
    """Return the split of each sample by id; None for a sample that no list contains.

    Lists take precedence over folders. Without either, the last fifth of each domain is "val":
    contiguous, because neighbouring frames of a drive are nearly the same. Numbers in ids count as
    numbers: frame 9 is next to frame 10.
    """
    if lists:
        listed = {sample_id: split for split, ids in lists.items() for sample_id in expand(ids)}
        return {sample.id: listed.get(sample.id) for sample in samples}
    by_domain: dict[str, list[str]] = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: _natural(sample.id)):
        by_domain[sample.domain].append(sample.id)
    held_out = {
        sample_id
        for ids in by_domain.values()
        for sample_id in ids[len(ids) - len(ids) // HELD_OUT :]
    }
    return {s.id: s.split or ("val" if s.id in held_out else "train") for s in samples}


def _natural(text: str) -> list[str | int]:
    """Return the words and numbers of a text, for sorting."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


Planned = tuple[RawSample, str]
"""A sample to convert, and its split."""


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
    older one only when it is complete. Samples whose files have not changed are reused from the
    older one, and from an interrupted run.

    Args:
        card: Card of the dataset.
        folders: Folders with the raw files, at any depth.
        label_map: Name of one of the card's label maps; None for the default of the layout.
        reencoding: Format and size of images; None leaves image files in place.
        strict: Refuse the dataset at the first defect instead of leaving samples out.
        hash_images: Record the SHA-256 of every image, which `verify` can then compare.
        jobs: Number of threads; None for one per core.
        on_event: Callback for progress events.

    Raises:
        ConfigError: The card has no such label map.
        DataError: The folders do not hold the dataset, or no sample is usable.
        MachineError: Another process is preparing the dataset.
    """
    root = dataset_root(card.name)
    folders = [expanded(folder).absolute() for folder in folders]
    with hold_lock(lock_file(root), f"the dataset {card.name}", on_event):
        match = find_samples(card, folders, label_map)
        refuse_disguised(card, match)
        _announce_layouts(match, on_event)
        _announce_missing_images(match, on_event)
        _announce_other_options(card, match, reencoding, on_event)
        with resumable_folder(root) as work:

            def conversion_of(layout: Layout) -> Conversion:
                used = card.label_map(match.label_map_of(layout))
                return Conversion(layout.encoding, used, reencoding, root, work, hash_images)

            conversion = conversion_of(match.layout)
            others = {split: conversion_of(lay) for split, lay in match.other_layouts.items()}
            _refuse_other_classes(conversion, others)
            planned, defects = _plan(card, match)
            records, more = _convert_all(planned, conversion, others, jobs, on_event)
            defects += more
            _refuse_unusable(card, records, defects, strict=strict)
            summary = _summary(card, match, conversion, others, records, defects)
            _announce_missing_samples(card, summary, on_event)
            summary["sources"] = [portable(folder, root) for folder in folders]
            summary["bytes"] = _remove_unused_files(work, records)
            _write(card, work, records, summary)
    return PreparedDataset.open(card.name)


@dataclass(frozen=True)
class Survey:
    """A dry run of `prepare`.

    Attributes:
        layout: Name of the layout that fits.
        label_map: Name of the label map.
        counts: Number of complete pairs by split.
        defects: Samples to leave out, by the names of files.
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
    folders = [expanded(folder) for folder in folders]
    if card.parquet and any(map(parquet_files, folders)):
        layout = card.layouts[0]
        return Survey(layout.name, label_map or layout.label_maps[0], count_rows(folders), [])
    match = find_samples(card, folders, label_map)
    refuse_disguised(card, match)
    planned, defects = _plan(card, match)
    defects += [
        Defect(str(raw.image), raw.reason, "missing partner")
        for raw, _ in planned
        if raw.label is None
    ]
    counts = Counter(split for raw, split in planned if raw.label)
    name = match.label_map_of(match.layout)
    return Survey(match.layout.name, name, dict(sorted(counts.items())), defects)


def prepare_synthetic(selections: Iterable[str], on_event: Listener = ignore) -> None:
    """Generate and prepare the synthetic datasets of `selections` that do not exist yet.

    Raises:
        ConfigError: A selection is not valid.
    """
    for name in {Selection.parse(text).dataset: None for text in selections}:
        card = get_card(name)
        if card.generate and not (dataset_root(name) / SUMMARY).exists():
            prepare(card, locate_raw_files(card, on_event=on_event), on_event=on_event)


def _announce_layouts(match: LayoutMatch, on_event: Listener) -> None:
    if match.is_assumed:
        message = (
            f"the labels are taken for '{match.layout.name}', because they hold no larger values; "
            "if they are of another version, name its map with --label-map"
        )
        on_event(Notice(message, warning=True))
    if match.left_splits:
        message = f"left out, as their labels hold no trainIds: {', '.join(match.left_splits)}"
        on_event(Notice(message, warning=True))
    for split, layout in match.other_layouts.items():
        message = (
            f"the labels of the split {split} are read by the layout '{layout.name}', those of the "
            f"others by '{match.layout.name}'"
        )
        on_event(Notice(message))


def _announce_missing_images(match: LayoutMatch, on_event: Listener) -> None:
    """Name the images that JSON files of COCO list and the folders lack."""
    if match.layout.encoding != "coco":
        return
    there = {folded(sample.image.name) for sample in match.samples}
    listed: dict[str, None] = {}
    for path in dict.fromkeys(match.labels):
        with suppress(DataError):  # each of its images is left out with the reason
            listed |= dict.fromkeys(entry.file.name for entry in read_coco_file(path).entries)
    if missing := [name for name in listed if name not in there]:
        names = ", ".join(missing[:_NAMED]) + ", ..." * (len(missing) > _NAMED)
        message = (
            f"images that the annotations list and the folder lacks: {len(missing):,} ({names})"
        )
        on_event(Notice(message, warning=True))


def _announce_other_options(
    card: DatasetCard, match: LayoutMatch, reencoding: Reencoding | None, on_event: Listener
) -> None:
    """Name the options of the last preparation that are neither repeated nor given anew."""
    before = last_summary(card.name) or {}
    is_same_map = before.get("label_map", {}).get("name") == match.label_map_of(match.layout)
    if match.label_map or is_same_map:
        before["label_map"] = {}
    if reencoding:
        before["reencoding"] = None
    if options := options_of(before, card):
        message = (
            f"the last preparation had {shell_join(*options)}, this one has not: other labels or "
            "images take the place of the earlier ones"
        )
        on_event(Notice(message, warning=True))


def _announce_missing_samples(
    card: DatasetCard, summary: Mapping[str, Any], on_event: Listener
) -> None:
    """Name the splits with published samples that the folders lack."""
    if is_complete(summary["counts"], summary, card):
        return
    few = ", ".join(
        f"{split.split} {split.here:,} of {split.published:,}"
        for split in differences(summary["counts"], summary, card)
        if split.here < split.published
    )
    on_event(Notice(f"published samples are missing: {few}", warning=True))


def _plan(card: DatasetCard, match: LayoutMatch) -> tuple[list[Planned], list[Defect]]:
    """Return the samples to convert, and those that the card or the folders exclude."""
    known = {
        sample_id: defect.reason
        for defect in card.known_defects
        if defect.exclude
        for sample_id in expand(defect.samples)
    }
    splits = split_of_each(match.samples, card.split_lists)
    planned = []
    defects = [Defect(str(p), "its image is missing", "missing partner") for p in match.orphans]
    defects += [Defect(str(p), "the sample was found before", "double") for p in match.duplicates]
    for raw in match.samples:
        split = splits[raw.id]
        if raw.id in known:
            defects.append(Defect(str(raw.image), known[raw.id], "known defect"))
        elif split is None:
            defects.append(Defect(str(raw.image), "no split lists it", "not listed"))
        else:
            planned.append((raw, split))
    return planned, defects


def _convert_all(
    planned: Sequence[Planned],
    conversion: Conversion,
    others: Mapping[str, Conversion],
    jobs: int | None,
    on_event: Listener,
) -> tuple[list[Record], list[Defect]]:
    """Convert what no earlier run has converted, and record each result at once."""
    earlier = {
        record.key: (folder, record)
        for folder in (conversion.root, conversion.folder)
        for record in read_records(folder)
    }
    records: list[Record] = []
    defects: list[Defect] = []

    def convert(item: Planned) -> Record | Defect:
        raw, split = item
        used = others.get(raw.split or "", conversion)
        earlier_result = earlier.get(used.key(raw))
        reused = _reuse(*earlier_result, item, used) if earlier_result else None
        return reused or used.convert(raw, split)

    with (
        (conversion.folder / RECORDS).open("a", encoding="utf-8") as journal,
        closing(parallel_map(convert, planned, jobs)) as results,
    ):
        journal.write("\n")  # ends an incomplete last line
        for done, result in enumerate(results, start=1):
            if isinstance(result, Defect):
                defects.append(result)
            else:
                records.append(result)
                journal.write(f"{result.to_json()}\n")
                journal.flush()
            on_event(Progress("preparing", done, len(planned)))
    return records, defects


def _reuse(folder: Path, record: Record, item: Planned, conversion: Conversion) -> Record | None:
    """Put the files of an earlier conversion in place; None if they are missing or changed."""
    if not is_intact(record, folder):
        return None
    raw, split = item
    sample = replace(placed(record.sample), split=split, domain=raw.domain)
    for old, new in zip(own_files(record.sample), own_files(sample), strict=True):
        if folder / old != conversion.folder / new:
            link_or_copy(folder / old, conversion.folder / new)
    sha256 = record.image_sha256
    if conversion.hash_images and sha256 is None:
        sha256 = file_digest(conversion.folder / sample.image)
    return replace(record, sample=sample, image_sha256=sha256)


def _refuse_other_classes(conversion: Conversion, others: Mapping[str, Conversion]) -> None:
    space = conversion.label_map.space
    for split, other in others.items():
        if not other.label_map.space.same_as(space):
            raise DataError(
                f"the labels of the split {split} have the classes '{other.label_map.space.name}', "
                f"those of the others '{space.name}'.",
                "Name a label map that fits all splits with --label-map.",
            )


def _refuse_unusable(
    card: DatasetCard, records: Sequence[Record], defects: Sequence[Defect], *, strict: bool
) -> None:
    unexpected = [d for d in defects if d.rule not in ("known defect", "not listed")]
    if records and not (strict and unexpected):
        return
    shown = unexpected or defects
    raise DataError(
        f"{len(shown)} of {len(records) + len(defects)} samples of {card.name} cannot be used; the "
        f"first: {shown[0].file}: {shown[0].reason}.",
        "Nothing was written." + (" Without --strict they are left out." if records else ""),
    )


def _remove_unused_files(work: Path, records: Iterable[Record]) -> int:
    """Remove files of an interrupted run that no record names; return the size of the others."""
    used = {str(path) for record in records for path in own_files(record.sample)}
    total = 0
    for kind in ("labels", "images"):
        for folder, _, names in os.walk(work / kind, topdown=False):
            relative = os.path.relpath(folder, work)
            for name in names:
                path = Path(folder, name)
                if f"{relative}{os.sep}{name}" in used:
                    total += path.stat().st_size
                else:
                    path.unlink()
            with suppress(OSError):  # not empty
                Path(folder).rmdir()
    return total


def _summary(
    card: DatasetCard,
    match: LayoutMatch,
    conversion: Conversion,
    others: Mapping[str, Conversion],
    records: Sequence[Record],
    defects: Sequence[Defect],
) -> dict[str, Any]:
    """Return `dataset.json`, of which the caller fills in the sources and the size."""

    def label_map_of(layout: Layout, used: Conversion) -> dict[str, str]:
        return {"name": match.label_map_of(layout), "digest": used.label_map.digest}

    return {
        "schema_version": SCHEMA_VERSION,
        "dataset": card.name,
        "title": card.title,
        "card_version": card.version,
        "layout": match.layout.name,
        "encoding": conversion.encoding,
        "label_map": label_map_of(match.layout, conversion),
        "label_space": conversion.label_map.space.model_dump(mode="json", exclude_defaults=True),
        "other_layouts": {
            split: {"layout": layout.name, "label_map": label_map_of(layout, others[split])}
            for split, layout in match.other_layouts.items()
        },
        "reencoding": asdict(conversion.reencoding) if conversion.reencoding else None,
        "sources": [],
        "bytes": 0,
        **totals(records, conversion.label_map.space),
        "excluded": [asdict(defect) for defect in sorted(defects, key=lambda d: d.file)],
        "pinmem_version": __version__,
    }


def _write(
    card: DatasetCard, work: Path, records: Sequence[Record], summary: Mapping[str, Any]
) -> None:
    write_lines(work / RECORDS, (r.to_json() for r in records))
    write_lines(work / MANIFEST, (r.sample.to_json() for r in records))
    if card.name not in shipped_cards():
        write_card(card, work / card_of_user(card.name).name)
    write_atomic(work / SUMMARY, json_bytes(summary))
