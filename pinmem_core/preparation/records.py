"""What `prepare` notes of each sample, so that it need not look at its pixels again."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.documents import read_json_lines
from pinmem_core.errors import DataError
from pinmem_core.events import ignore
from pinmem_core.images import check_picture, read_train_ids
from pinmem_core.label_space import CLASSES
from pinmem_core.preparation.prepared import RECORDS, digest
from pinmem_core.preparation.samples import Sample, own_path


@dataclass(frozen=True)
class Record:
    """What is known of a converted sample beside its line in the manifest.

    Attributes:
        key: Digest of all that its files were made from; equal keys need no second conversion.
        sample: Its line in the manifest, paths as written there.
        label_sha256: Of the (H, W) trainIds.
        pixels: Labelled pixels by trainId.
        image_sha256: Of the image's file, where `prepare` was asked for it.
    """

    key: str
    sample: Sample
    label_sha256: str
    pixels: tuple[int, ...]
    image_sha256: str | None = None

    def to_json(self) -> str:
        """Return the record as a line."""
        fields = {**vars(self), "sample": json.loads(self.sample.to_json())}
        if self.image_sha256 is None:  # versions that know no such key read the others
            del fields["image_sha256"]
        return json.dumps(fields)

    @classmethod
    def of_fields(cls, fields: dict[str, Any]) -> "Record":
        """Return the record of a line.

        Raises:
            TypeError: A field is missing, unknown, or of another type.
        """
        sample, pixels = Sample.of_fields(fields["sample"]), tuple(fields["pixels"])
        record = cls(**fields | {"sample": sample, "pixels": pixels})
        if not all(isinstance(text, str) for text in (record.key, record.label_sha256)):
            raise TypeError("a key or digest is not a text")
        if len(pixels) != len(CLASSES) or not all(type(n) is int and n >= 0 for n in pixels):
            raise TypeError("the pixels are not the counts of the classes")
        return record


def read_records(folder: Path) -> Iterator[Record]:
    """Yield the records kept in `folder`; lines that are torn or odd are passed over."""
    return read_json_lines(folder / RECORDS, Record.of_fields, ignore)


def own_files(sample: Sample) -> list[Path]:
    """Return the files of a sample that lie inside its prepared dataset, relative to its root."""
    return [path for path in (sample.image, sample.label) if path.parts[0] in ("images", "labels")]


def placed(sample: Sample) -> Sample:
    """Return a sample, own files where `own_path` has them; earlier versions kept them together."""
    own = own_files(sample)
    image, label = (
        own_path(path.parts[0], path.name) if path in own else path
        for path in (sample.image, sample.label)
    )
    return replace(sample, image=image, label=label)


def is_intact(record: Record, folder: Path) -> bool:
    """Tell whether the files that `prepare` wrote into `folder` are still what they were."""
    try:
        image, label = record.sample.image, record.sample.label
        if image in own_files(record.sample):
            check_picture(folder / image)
        train_ids = read_train_ids(folder / label)
    except DataError:
        return False
    return label_digest(train_ids) == record.label_sha256


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def label_digest(train_ids: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of (H, W) trainIds."""
    return hashlib.sha256(np.ascontiguousarray(train_ids).data).hexdigest()


def count_pixels(train_ids: NDArray[np.uint8]) -> tuple[int, ...]:
    """Return the number of pixels of each of the 19 classes."""
    return tuple(Image.fromarray(train_ids).histogram()[: len(CLASSES)])


def totals(records: Sequence[Record]) -> dict[str, Any]:
    """Return what `dataset.json` says of all samples together: counts, class pixels and digest."""
    pixels = np.sum([record.pixels for record in records], axis=0)
    return {
        "counts": dict(sorted(Counter(r.sample.split for r in records).items())),
        "class_pixels": {c.name: int(pixels[c.train_id]) for c in CLASSES},
        "digest": digest((r.sample, r.label_sha256) for r in records),
    }
