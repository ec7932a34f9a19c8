"""Pack a prepared dataset into one file for another machine."""

import hashlib
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict

from pinmem_core.data.archive_readers import MOST_MEMBERS
from pinmem_core.data.card import DatasetCard
from pinmem_core.data.catalog import card_text, get_card
from pinmem_core.data.convert import (
    Record,
    Reencoding,
    count_pixels,
    file_digest,
    label_digest,
    read_records,
    totals,
)
from pinmem_core.data.prepared import MANIFEST, RECORDS, SUMMARY, PreparedDataset
from pinmem_core.data.samples import Sample, own_path
from pinmem_core.documents import json_bytes
from pinmem_core.errors import ConfigError, DataError, MachineError, unknown_name
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.images import check_image, image_size, read_image
from pinmem_core.locks import hold_lock, lock_file
from pinmem_core.parallel import parallel_map
from pinmem_core.paths import as_portable_name, dataset_root, expanded
from pinmem_core.png import label_png

FORMAT_VERSION = 1
"""Raised whenever older versions of pinmem would misread a pack."""
HEADER = "pinmem-pack.json"
"""First member: the version of the format, and what the pack holds."""
CARD = "card.yaml"
"""Second member: the card of the dataset."""
IMAGE_DIGESTS = "images.sha256"
"""Last member: the SHA-256 of each image, as `sha256sum` writes and checks it."""
_TEXTS = 8
"""Upper bound of the number of members that are not images or labels."""
_MOST_LISTED = 100_000
"""Entries of split lists in the card of a pack, which is one file within the limits of YAML."""

Content = Path | bytes
"""Content of a member: a file to copy, or the bytes themselves."""


class Header(BaseModel):
    """Content of the first member."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format_version: int
    dataset: str
    samples: int
    digest: str


@dataclass(frozen=True)
class PackSummary:
    """Summary of a pack: its file, number of samples, size in bytes and the dataset's digest."""

    path: Path
    samples: int
    bytes: int
    digest: str


def pack(
    name: str,
    out: Path,
    *,
    reencoding: Reencoding | None = None,
    splits: Sequence[str] = (),
    overwrite: bool = False,
    jobs: int | None = None,
    on_event: Listener = ignore,
) -> PackSummary:
    """Write a prepared dataset and its images to the file `out`, whole or not at all.

    Args:
        name: Name of the dataset.
        out: File of the pack, a ".tar".
        reencoding: Format and size of the images in the pack; None copies the files.
        splits: Splits to pack; empty for all.
        overwrite: Whether `out` may exist.
        jobs: Number of threads; None for one per core.
        on_event: Callback for progress events.

    Raises:
        ConfigError: The dataset or a split is unknown, or `out` exists or is not a ".tar".
        DataError: The dataset is not prepared, or its files have changed since.
        MachineError: `out` cannot be written, or another process is changing the dataset.
    """
    out = expanded(out).absolute()
    if out.suffix != ".tar":
        raise ConfigError(f"a pack is a .tar, which {out} is not.", "Name it 'NAME.tar'.")
    if out.is_dir() or (out.exists() and not overwrite):
        raise ConfigError(f"{out} exists.", "Name another file, or add --force.")
    card = get_card(name)
    with hold_lock(lock_file(dataset_root(name)), f"the dataset {name}", on_event):
        dataset = PreparedDataset.open(name)
        for split in splits:
            if split not in dataset.counts:
                raise unknown_name(f"split of {name}", split, dataset.counts)
        samples = [sample for sample in dataset.samples if not splits or sample.split in splits]
        _refuse_too_many(card, len(samples))
        digests = {record.sample.id: record.label_sha256 for record in read_records(dataset.root)}
        records = _packed_records(samples, digests, reencoding, jobs, on_event)
        summary = _packed_summary(dataset, records, reencoding)
        header = Header(
            format_version=FORMAT_VERSION,
            dataset=name,
            samples=len(records),
            digest=summary["digest"],
        )
        with _tar(out) as tar:
            _add(tar, HEADER, json_bytes(header.model_dump()))
            _add(tar, CARD, card_text(card).encode())
            _add(tar, SUMMARY, json_bytes(summary))
            _add(tar, MANIFEST, "".join(f"{r.sample.to_json()}\n" for r in records).encode())
            _add(tar, RECORDS, "".join(f"{r.to_json()}\n" for r in records).encode())
            images = _add_files(tar, samples, records, reencoding, jobs, on_event)
            _add(tar, IMAGE_DIGESTS, images.encode())
    return PackSummary(out, len(records), out.stat().st_size, summary["digest"])


def _packed_records(
    samples: Sequence[Sample],
    digests: Mapping[str, str],
    reencoding: Reencoding | None,
    jobs: int | None,
    on_event: Listener,
) -> list[Record]:
    """Return the records of the samples in the pack, with each label read and checked."""

    def record_of(sample: Sample) -> Record:
        with sample.repair_hint():
            train_ids = sample.reading.read(sample.label)
            if label_digest(train_ids) != digests.get(sample.id):
                raise _changed(sample.label)
        if reencoding:
            train_ids = reencoding.label(train_ids)
        height, width = train_ids.shape
        suffix = reencoding.suffix if reencoding else sample.image.suffix
        name = as_portable_name(sample.id)
        image = own_path("images", name + as_portable_name(suffix))
        label = own_path("labels", f"{name}.png")
        packed = replace(sample, image=image, label=label, width=width, height=height)
        # The key is empty: other machines do not have the source files.
        pixels = count_pixels(train_ids, len(sample.reading.own))
        return Record("", packed, label_digest(train_ids), pixels)

    records = []
    with closing(parallel_map(record_of, samples, jobs)) as results:
        for record in results:
            records.append(record)
            on_event(Progress("checking labels", len(records), len(samples)))
    return records


def _packed_summary(
    dataset: PreparedDataset, records: Sequence[Record], reencoding: Reencoding | None
) -> dict[str, Any]:
    """Return the `dataset.json` of the pack; unpacking adds the size of the files."""
    summary = dataset.summary
    return {
        **{key: value for key, value in summary.items() if key != "bytes"},
        **totals(records, dataset.label_space),
        "splits": sorted({record.sample.split for record in records}),
        "reencoding": asdict(reencoding) if reencoding else summary["reencoding"],
        "sources": [],
        "excluded": [_without_folders(defect) for defect in summary["excluded"]],
    }


def _without_folders(defect: Mapping[str, str]) -> dict[str, str]:
    """Return a defect with the last two parts of its file's path."""
    path = PurePath(defect["file"])
    short = "/".join(path.relative_to(path.anchor).parts[-2:])
    return {**defect, "file": short, "reason": defect["reason"].replace(defect["file"], short)}


def _add_files(
    tar: tarfile.TarFile,
    samples: Sequence[Sample],
    records: Sequence[Record],
    reencoding: Reencoding | None,
    jobs: int | None,
    on_event: Listener,
) -> str:
    """Add labels, then images, each sorted by name; return the digests of the images as lines."""

    def content_of(file: tuple[str, Sample]) -> Content:
        name, sample = file
        with sample.repair_hint():
            if name.startswith("labels"):
                if not reencoding:
                    return sample.label
                return label_png(reencoding.label(sample.reading.read(sample.label)))
            if image_size(sample.image) != (sample.width, sample.height):
                raise _changed(sample.image)
            if reencoding:
                return reencoding.image(read_image(sample.image))
            check_image(sample.image)
            return sample.image

    pairs = list(zip(records, samples, strict=True))
    labels = {record.sample.label.as_posix(): sample for record, sample in pairs}
    images = {record.sample.image.as_posix(): sample for record, sample in pairs}
    files = [(name, kind[name]) for kind in (labels, images) for name in sorted(kind)]
    digests = []
    with closing(parallel_map(content_of, files, jobs)) as contents:
        for done, ((name, _), content) in enumerate(zip(files, contents, strict=True), start=1):
            _add(tar, name, content)
            if name in images:
                digests.append(f"{_digest_of(content)}  {name}\n")
            on_event(Progress("packing", done, len(files)))
    return "".join(digests)


def _digest_of(content: Content) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return file_digest(content)


def _changed(path: Path) -> DataError:
    return DataError(f"{path} has changed since the dataset was prepared.")


def _refuse_too_many(card: DatasetCard, samples: int) -> None:
    """Refuse a dataset that could be packed, but not unpacked."""
    most = MOST_MEMBERS // 2 - _TEXTS
    if samples > most:
        raise DataError(
            f"a pack holds at most {most:,} samples, and this one would hold {samples:,}.",
            "Pack some splits alone (--splits val), or copy PINMEM_HOME and the images.",
        )
    listed = sum(map(len, card.split_lists.values()))
    if listed > _MOST_LISTED:
        raise DataError(
            f"the card of {card.name} lists {listed:,} samples in its splits; the card in a pack "
            f"may list {_MOST_LISTED:,}.",
            "Use ranges (00001..00010) or folders for the splits, and prepare the dataset again.",
        )


@contextmanager
def _tar(out: Path) -> Iterator[tarfile.TarFile]:
    """Yield an archive that replaces `out` when the block succeeds."""
    part = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(part, "w") as tar:
            yield tar
        part.replace(out)
    except OSError as error:
        hint = "Make room there, or name a file on another disk."
        raise MachineError(f"cannot write {out}: {error.strerror or error}.", hint) from error
    finally:
        with suppress(OSError):
            part.unlink()


def _add(tar: tarfile.TarFile, name: str, content: Content) -> None:
    """Add a member with no owner, time or mode of its file: equal data give equal packs."""
    info = tarfile.TarInfo(name)
    if isinstance(content, bytes):
        info.size = len(content)
        tar.addfile(info, BytesIO(content))
    else:
        info.size = content.stat().st_size
        with content.open("rb") as file:
            tar.addfile(info, file)
