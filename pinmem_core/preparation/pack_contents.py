"""What a pack holds: a prepared dataset and its images, as they will lie on another machine."""

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from pinmem_core.datasets import DatasetCard, write_card
from pinmem_core.documents import json_text
from pinmem_core.errors import DataError, unknown_name
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.images import check_picture, image_size, read_image, read_train_ids
from pinmem_core.parallel import in_parallel
from pinmem_core.paths import as_portable_name
from pinmem_core.png import label_png
from pinmem_core.preparation.prepared import (
    MANIFEST,
    RECORDS,
    SUMMARY,
    PreparedDataset,
)
from pinmem_core.preparation.records import (
    Record,
    count_pixels,
    file_digest,
    label_digest,
    read_records,
    totals,
)
from pinmem_core.preparation.reencoding import Reencoding
from pinmem_core.preparation.samples import Sample, own_path

FORMAT_VERSION = 1
"""Raised whenever older versions of pinmem would misread a pack."""
HEADER = "pinmem-pack.json"
"""A pack's first member: the version of its format, and what is inside."""
CARD = "card.yaml"
"""Its second member: the card of the dataset."""

IMAGE_DIGESTS = "images.sha256"
"""Its last member: the SHA-256 of every image, as `sha256sum` writes and checks it."""

_AT_ONCE = 64

Content = Path | bytes
"""Of a member: the file to copy, or the bytes themselves."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PackedSample:
    """A sample where it lies here, and its record in the pack."""

    source: Sample
    record: Record


def packed_samples(
    dataset: PreparedDataset,
    splits: Sequence[str],
    reencoding: Reencoding | None = None,
    jobs: int | None = None,
    on_event: Listener = ignore,
) -> list[PackedSample]:
    """Return what a pack will hold of a dataset, every label read and checked.

    Args:
        dataset: The dataset.
        splits: Which to pack; none means all.
        reencoding: How images will be written anew.
        jobs: Labels read at once; None for one a core.
        on_event: Hears of the progress.

    Raises:
        ConfigError: A split does not exist.
        DataError: A label cannot be read, or is not the one that was prepared.
    """
    for split in splits:
        if split not in dataset.counts:
            raise unknown_name(f"split of {dataset.name}", split, dataset.counts)
    samples = [sample for sample in dataset.samples if not splits or sample.split in splits]
    digests = {record.sample.id: record.label_sha256 for record in read_records(dataset.root)}

    def pack(sample: Sample) -> PackedSample:
        return PackedSample(sample, _record(sample, digests.get(sample.id), reencoding))

    packed = []
    with closing(in_parallel(pack, samples, jobs)) as results:
        for item in results:
            packed.append(item)
            on_event(Progress("checking labels", len(packed), len(samples)))
    return packed


def texts(
    card: DatasetCard, summary: Mapping[str, Any], packed: Iterable[PackedSample]
) -> Iterator[tuple[str, bytes]]:
    """Yield the names and bytes of the members that come before the pictures."""
    records = [item.record for item in packed]
    header = {
        "format_version": FORMAT_VERSION,
        "dataset": card.name,
        "samples": len(records),
        "digest": summary["digest"],
    }
    yield HEADER, as_json(header)
    yield CARD, _yaml(card)
    yield SUMMARY, as_json(summary)
    yield MANIFEST, "".join(f"{record.sample.to_json()}\n" for record in records).encode()
    yield RECORDS, "".join(f"{record.to_json()}\n" for record in records).encode()


def pictures(
    packed: Iterable[PackedSample], reencoding: Reencoding | None = None, jobs: int | None = None
) -> Generator[tuple[str, Content], None, None]:
    """Yield the names and contents of labels and images, each kind sorted by name.

    Raises:
        DataError: A picture cannot be read, or is not the one that was prepared.
    """
    labels = {item.record.sample.label.as_posix(): item.source for item in packed}
    images = {item.record.sample.image.as_posix(): item.source for item in packed}
    for sources, content in ((labels, _label), (images, _image)):

        def made(
            entry: tuple[str, Sample], content: Callable[..., Content] = content
        ) -> tuple[str, Content]:
            name, source = entry
            with source.mendable():
                return name, content(source, reencoding)

        yield from in_parallel(made, sorted(sources.items()), jobs)


def packed_summary(
    summary: Mapping[str, Any],
    packed: Sequence[PackedSample],
    reencoding: Reencoding | None = None,
) -> dict[str, Any]:
    """Return what `dataset.json` will say in a pack; unpacking adds the bytes of the pictures."""
    return {
        **{key: value for key, value in summary.items() if key != "bytes"},
        **totals([item.record for item in packed]),
        "splits": sorted({item.source.split for item in packed}),
        "reencoding": asdict(reencoding) if reencoding else summary["reencoding"],
        "sources": [],
        "excluded": [_without_folders(defect) for defect in summary["excluded"]],
    }


def _record(sample: Sample, sha256: str | None, reencoding: Reencoding | None) -> Record:
    """Return the record that a sample will have in a pack."""
    with sample.mendable():
        train_ids = read_train_ids(sample.label)
        if label_digest(train_ids) != sha256:
            raise _changed(sample.label)
    if reencoding:
        train_ids = reencoding.label(train_ids)
    height, width = train_ids.shape
    suffix = reencoding.suffix if reencoding else sample.image.suffix
    name = as_portable_name(sample.id)
    packed = replace(
        sample,
        image=own_path("images", name + as_portable_name(suffix)),
        label=own_path("labels", f"{name}.png"),
        width=width,
        height=height,
    )
    # No key: no other machine has what these files were made from.
    return Record("", packed, label_digest(train_ids), count_pixels(train_ids))


def _label(sample: Sample, reencoding: Reencoding | None) -> Content:
    return label_png(reencoding.label(read_train_ids(sample.label))) if reencoding else sample.label


def _image(sample: Sample, reencoding: Reencoding | None) -> Content:
    if image_size(sample.image) != (sample.width, sample.height):
        raise _changed(sample.image)
    if reencoding:
        return reencoding.image(read_image(sample.image))
    check_picture(sample.image)
    return sample.image


def content_digest(content: Content) -> str:
    """Return the SHA-256 of a member."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return file_digest(content)


def _changed(path: Path) -> DataError:
    return DataError(f"{path} has changed since the dataset was prepared.")


def _without_folders(defect: Mapping[str, str]) -> dict[str, str]:
    """Return a defect that keeps the last two parts of its file's path."""
    path = PurePath(defect["file"])
    short = "/".join(path.relative_to(path.anchor).parts[-2:])
    return {**defect, "file": short, "reason": defect["reason"].replace(defect["file"], short)}


def as_json(values: Mapping[str, Any]) -> bytes:
    """Return an object as the text of a file."""
    return (json_text(values, indent=2) + "\n").encode()


def _yaml(card: DatasetCard) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder, CARD)
        write_card(card, path, shared=True)
        return path.read_bytes()
