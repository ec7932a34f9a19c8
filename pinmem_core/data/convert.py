"""Conversion of one sample: check an image and its label, and write the trainIds."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.data.encodings import ENCODINGS, Decoder
from pinmem_core.data.layouts import RawSample
from pinmem_core.data.prepared import RECORDS, digest
from pinmem_core.data.samples import Sample, own_path
from pinmem_core.documents import read_json_lines
from pinmem_core.errors import ConfigError, DataError, unknown_name
from pinmem_core.events import ignore
from pinmem_core.files import write_atomic
from pinmem_core.home import home
from pinmem_core.images import check_image, image_size, read_image, read_train_ids
from pinmem_core.label_space import CLASSES, LabelMap
from pinmem_core.png import label_png

Format = Literal["jpeg", "png", "webp"]
_SUFFIX = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}


@dataclass(frozen=True)
class Reencoding:
    """How images are written anew.

    Attributes:
        format: File format; png loses nothing.
        quality: Of jpeg and webp, 1 to 100.
        height: Taller images and their labels are shrunk to this; None keeps every size.

    Raises:
        ConfigError: A value is out of range.
    """

    format: Format
    quality: int = 95
    height: int | None = None

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise unknown_name("image format", self.format, get_args(Format))
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"the quality {self.quality} is not between 1 and 100.")
        if self.height is not None and self.height < 1:
            raise ConfigError(f"images cannot be {self.height} pixels high.")

    @property
    def suffix(self) -> str:
        """The file name suffix of this format."""
        return _SUFFIX[self.format]

    def image(self, pixels: NDArray[np.uint8]) -> bytes:
        """Return the file of an (H, W, 3) image, shrunk bicubically where it is too tall."""
        picture = Image.fromarray(pixels)
        picture = picture.resize(self._size(picture), Image.Resampling.BICUBIC)
        data = BytesIO()
        options = {} if self.format == "png" else {"quality": self.quality}
        picture.save(data, self.format, **options)
        return data.getvalue()

    def label(self, train_ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return (H, W) trainIds at the size of the image, by nearest neighbour."""
        picture = Image.fromarray(train_ids)
        return np.asarray(picture.resize(self._size(picture), Image.Resampling.NEAREST))

    def _size(self, picture: Image.Image) -> tuple[int, int]:
        if self.height is None or picture.height <= self.height:
            return picture.size
        return max(1, round(picture.width * self.height / picture.height)), self.height


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
            check_image(folder / image)
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


_VERSION = 2
"""Raised whenever the same files would be written differently."""
_SHOWN = 5
"""Unknown values of a label that are named."""


@dataclass(frozen=True)
class Defect:
    """A file that was left out.

    Attributes:
        file: Its path.
        reason: What is wrong with it, for people.
        rule: The rule that excludes it, for counting.
    """

    file: str
    reason: str
    rule: str


@dataclass(frozen=True)
class Conversion:
    """How the samples of a dataset are converted.

    Attributes:
        encoding: How label files are read.
        label_map: Translates them.
        reencoding: How images are written anew; None leaves them where they are.
        root: Where the prepared dataset will be.
        folder: Where its files are written until it is complete.
        hash_images: Whether to record the SHA-256 of images.
    """

    encoding: str
    label_map: LabelMap
    reencoding: Reencoding | None
    root: Path
    folder: Path
    hash_images: bool = False

    @cached_property
    def _decode(self) -> Decoder:
        """The reader of label files; looking it up lists a folder, which a sample need not."""
        return ENCODINGS.get(self.encoding)

    def key(self, raw: RawSample) -> str:
        """Return a digest of all that the files of a sample are made from."""
        made_from = [
            _VERSION,
            raw.id,
            _state(raw.image),
            _state(raw.label),
            self.encoding,
            self.label_map.digest,
            asdict(self.reencoding) if self.reencoding else None,
        ]
        return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()

    def convert(self, raw: RawSample, split: str) -> Record | Defect:
        """Check one pair and write its files, or say why it cannot be used."""
        try:
            size = self._check_image(raw)
            return self._write(raw, split, self.read_label(raw, size))
        except _UnusableError as fault:
            return fault.defect

    def _check_image(self, raw: RawSample) -> tuple[int, int]:
        """Return the (width, height) of a sound image."""
        try:
            check_image(raw.image, pixels=self.reencoding is None)
            return image_size(raw.image)
        except DataError as error:
            raise _unreadable(raw.image, error) from None

    def read_label(self, raw: RawSample, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the (H, W) trainIds of a sound label; `size` is the image's (width, height)."""
        if raw.label is None:
            raise _UnusableError(raw.image, raw.lack, "missing partner")
        try:
            values = self._decode(raw.label, self.label_map)
            train_ids, unknown = self.label_map.apply(values)
        except (DataError, ValueError) as error:
            raise _unreadable(raw.label, error) from None
        height, width = train_ids.shape
        if (width, height) != size:
            reason = f"is {width}x{height}, but its image is {size[0]}x{size[1]}"
            raise _UnusableError(raw.label, reason, "other size")
        if unknown:
            reason = f"holds values that the label map does not know: {self._few(unknown)}"
            raise _UnusableError(raw.label, reason, "unknown value")
        if (values == values[0, 0]).all():
            raise _UnusableError(raw.label, "is of a single value", "single value")
        return train_ids

    def _few(self, values: Sequence[int]) -> str:
        """Return the first of some raw values as a card has them."""
        rest = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
        return ("; " if self.label_map.of_colors else ", ").join(
            map(self.label_map.text, values[:_SHOWN])
        ) + rest

    def _write(self, raw: RawSample, split: str, train_ids: NDArray[np.uint8]) -> Record:
        image = Path(portable(raw.image, self.root))
        if self.reencoding:
            image = own_path("images", raw.id + self.reencoding.suffix)
            write_atomic(self.folder / image, self._reencoded(raw, self.reencoding))
            train_ids = self.reencoding.label(train_ids)
        return self.write_label(raw, split, image, train_ids)

    def _reencoded(self, raw: RawSample, reencoding: Reencoding) -> bytes:
        try:
            return reencoding.image(read_image(raw.image))
        except DataError as error:
            raise _unreadable(raw.image, error) from None

    def write_label(
        self, raw: RawSample, split: str, image: Path, train_ids: NDArray[np.uint8]
    ) -> Record:
        """Write the trainIds of a sample and return its record."""
        pixels = count_pixels(train_ids)
        if not any(pixels):
            raise _UnusableError(
                raw.label or raw.image, "no pixel of it belongs to a class", "nothing labelled"
            )
        label = own_path("labels", f"{raw.id}.png")
        write_atomic(self.folder / label, label_png(train_ids))
        height, width = train_ids.shape
        return Record(
            key=self.key(raw),
            sample=Sample(raw.id, image, label, split, raw.domain, width, height),
            label_sha256=label_digest(train_ids),
            pixels=pixels,
            image_sha256=file_digest(self.folder / image) if self.hash_images else None,
        )


class _UnusableError(Exception):
    """A file is not what it should be."""

    def __init__(self, file: Path, reason: str, rule: str) -> None:
        super().__init__(reason)
        self.defect = Defect(str(file), reason.rstrip("."), rule)


def _unreadable(path: Path, error: Exception) -> _UnusableError:
    return _UnusableError(path, str(error).removeprefix(f"{path} "), "unreadable")


def portable(path: Path, root: Path) -> str:
    """Return `path` relative to `root` where both lie under `PINMEM_HOME`, which may move."""
    return os.path.relpath(path, root) if path.is_relative_to(home()) else str(path)


def _state(path: Path | None) -> list[object] | None:
    """Return what changes when a file does."""
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return [str(path)]  # told when the file is opened
    return [str(path), status.st_size, status.st_mtime_ns]
