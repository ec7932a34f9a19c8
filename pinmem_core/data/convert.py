"""Conversion of one sample: check an image and its label, and write the trainIds."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ConfigDict, Field, TypeAdapter

from pinmem_core.data.encodings import ENCODINGS, MORE_FILES, Decoder
from pinmem_core.data.label_maps import LabelMap
from pinmem_core.data.layouts import RawSample
from pinmem_core.data.prepared import RECORDS, digest
from pinmem_core.data.samples import Sample, Text, own_path
from pinmem_core.documents import read_json_lines
from pinmem_core.errors import ConfigError, DataError, unknown_name
from pinmem_core.events import ignore
from pinmem_core.files import sha256_of, write_atomic
from pinmem_core.images import check_image, image_size, open_image, read_image
from pinmem_core.label_files import read_train_ids
from pinmem_core.label_space import MOST_CLASSES, LabelSpace
from pinmem_core.paths import home
from pinmem_core.png import label_png

Format = Literal["jpeg", "png", "webp"]

_VERSION = 2
"""Raised whenever the same files would be converted differently."""
_SHOWN = 5
"""Number of unknown values of a label that a message shows."""


@dataclass(frozen=True)
class Reencoding:
    """Format and size in which images are written.

    Attributes:
        format: File format; PNG is lossless.
        quality: Quality of JPEG and WebP, 1 to 100.
        height: Maximum height in pixels, for images and labels; None keeps every size.

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
        """The file name suffix of the format."""
        return ".jpg" if self.format == "jpeg" else f".{self.format}"

    def image(self, pixels: NDArray[np.uint8]) -> bytes:
        """Encode an (H, W, 3) image, downsampled bicubically if it is too high."""
        image = Image.fromarray(pixels)
        image = image.resize(self._size(image), Image.Resampling.BICUBIC)
        data = BytesIO()
        options = {} if self.format == "png" else {"quality": self.quality}
        image.save(data, self.format, **options)
        return data.getvalue()

    def label(self, train_ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return (H, W) trainIds at the size of the image, by nearest neighbour."""
        image = Image.fromarray(train_ids)
        return np.asarray(image.resize(self._size(image), Image.Resampling.NEAREST))

    def _size(self, image: Image.Image) -> tuple[int, int]:
        if self.height is None or image.height <= self.height:
            return image.size
        return max(1, round(image.width * self.height / image.height)), self.height


_Count = Annotated[int, Field(strict=True, ge=0)]


@dataclass(frozen=True)
class Record:
    """The record of a converted sample.

    Attributes:
        key: Digest of everything that the files depend on; equal keys mean equal files.
        sample: Line of the manifest, with paths as written there.
        label_sha256: SHA-256 of the (H, W) trainIds.
        pixels: Number of labelled pixels by trainId.
        image_sha256: SHA-256 of the image file, if `prepare` was asked for it.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    key: Text
    sample: Sample
    label_sha256: Text
    pixels: Annotated[tuple[_Count, ...], Field(min_length=2, max_length=MOST_CLASSES)]
    image_sha256: Text | None = None

    def to_json(self) -> str:
        """Return the record as a line."""
        fields = {**vars(self), "sample": json.loads(self.sample.to_json())}
        if self.image_sha256 is None:  # earlier versions do not know the key
            del fields["image_sha256"]
        return json.dumps(fields)


_ADAPTER = TypeAdapter(Record)


def read_records(folder: Path) -> Iterator[Record]:
    """Yield the records in `folder`; damaged lines are skipped."""
    return read_json_lines(folder / RECORDS, _ADAPTER.validate_python, ignore)


def own_files(sample: Sample) -> list[Path]:
    """Return the files of a sample inside its prepared dataset, relative to the root."""
    return [path for path in (sample.image, sample.label) if path.parts[0] in ("images", "labels")]


def placed(sample: Sample) -> Sample:
    """Return a sample with its own files at `own_path`; earlier versions used one folder."""
    own = own_files(sample)
    image, label = (
        own_path(path.parts[0], path.name) if path in own else path
        for path in (sample.image, sample.label)
    )
    return replace(sample, image=image, label=label)


def is_intact(record: Record, folder: Path) -> bool:
    """Return whether the files that `prepare` wrote into `folder` are unchanged."""
    sample = record.sample
    try:
        if sample.image in own_files(sample):
            check_image(folder / sample.image)
        train_ids = read_train_ids(folder / sample.label, classes=len(record.pixels))
        return label_digest(train_ids) == record.label_sha256
    except DataError:
        return False


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def label_digest(train_ids: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of (H, W) trainIds."""
    return hashlib.sha256(np.ascontiguousarray(train_ids).data).hexdigest()


def count_pixels(train_ids: NDArray[np.uint8], classes: int) -> tuple[int, ...]:
    """Return the number of pixels of each of the first `classes` trainIds."""
    return tuple(Image.fromarray(train_ids).histogram()[:classes])


def totals(records: Sequence[Record], space: LabelSpace) -> dict[str, Any]:
    """Return the counts, class pixels and digest of `dataset.json`."""
    pixels = np.sum([record.pixels for record in records], axis=0)
    return {
        "counts": dict(sorted(Counter(r.sample.split for r in records).items())),
        "class_pixels": dict(zip(space.names, pixels.tolist(), strict=True)),
        "digest": digest((r.sample, r.label_sha256) for r in records),
    }


@dataclass(frozen=True)
class Defect:
    """A file that is left out: its path, the reason, and the rule that excludes it."""

    file: str
    reason: str
    rule: str


class _DefectError(Exception):
    def __init__(self, file: Path, reason: str, rule: str) -> None:
        super().__init__(reason)
        self.defect = Defect(str(file), reason.rstrip("."), rule)


@dataclass(frozen=True)
class Conversion:
    """Conversion of the samples of a dataset.

    Attributes:
        encoding: Encoding of the label files.
        label_map: Label map from raw values to trainIds.
        reencoding: Format and size of images; None leaves image files in place.
        root: Folder of the prepared dataset.
        folder: Folder into which files are written until the dataset is complete.
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
        return ENCODINGS.get(self.encoding)  # lists a folder: not for each sample

    @cached_property
    def _more_files(self) -> Callable[[Path, Path], list[Path]] | None:
        return MORE_FILES.all().get(self.encoding)

    def key(self, raw: RawSample) -> str:
        """Return a digest of everything that the files of a sample depend on."""
        depends_on = [
            _VERSION,
            raw.id,
            _state(raw.image),
            _state(raw.label),
            self.encoding,
            self.label_map.digest,
            asdict(self.reencoding) if self.reencoding else None,
        ]
        if self._more_files and raw.label:
            depends_on += [_state(path) for path in self._more_files(raw.label, raw.image)]
        return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()

    def convert(self, raw: RawSample, split: str) -> Record | Defect:
        """Check one pair and write its files, or return its defect."""
        try:
            check_image(raw.image, pixels=self.reencoding is None)
            size = image_size(raw.image)
        except DataError as error:
            return _unreadable(raw.image, error).defect
        try:
            train_ids = self.read_label(raw, size)
            image = Path(portable(raw.image, self.root))
            if self.reencoding:
                image = own_path("images", raw.id + self.reencoding.suffix)
                write_atomic(self.folder / image, self._reencoded(raw, self.reencoding))
                train_ids = self.reencoding.label(train_ids)
            return self.write_label(raw, split, image, train_ids)
        except _DefectError as error:
            return error.defect

    def read_label(self, raw: RawSample, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the (H, W) trainIds of a valid label; `size` is the image's (width, height)."""
        if raw.label is None:
            raise _DefectError(raw.image, raw.reason, "missing partner")
        try:
            values = self._decode(raw.label, self.label_map, raw.image)
            train_ids, unknown = self.label_map.apply(values)
        except (DataError, ValueError) as error:
            raise _unreadable(raw.label, error) from None
        height, width = train_ids.shape
        if (width, height) != size:
            with open_image(raw.image) as image:
                upright = "" if image.size == size else ", turned upright by its EXIF orientation,"
            reason = f"is {width}x{height}, but its image{upright} is {size[0]}x{size[1]}"
            raise _DefectError(raw.label, reason, "other size")
        if unknown:
            separator = "; " if self.label_map.of_colors else ", "
            few = separator.join(map(self.label_map.text, unknown[:_SHOWN]))
            few += f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            reason = f"holds values that the label map does not know: {few}"
            raise _DefectError(raw.label, reason, "unknown value")
        if (values == values[0, 0]).all():
            raise _DefectError(raw.label, f"is of a single value{self._of(raw)}", "single value")
        return train_ids

    def _of(self, raw: RawSample) -> str:
        """Return the name of the image, for messages, if its label file holds those of many."""
        return f" in {raw.image.name}" if self.encoding == "coco" else ""

    def _reencoded(self, raw: RawSample, reencoding: Reencoding) -> bytes:
        try:
            return reencoding.image(read_image(raw.image))
        except DataError as error:
            raise _unreadable(raw.image, error) from None

    def write_label(
        self, raw: RawSample, split: str, image: Path, train_ids: NDArray[np.uint8]
    ) -> Record:
        """Write the trainIds of a sample and return its record."""
        pixels = count_pixels(train_ids, len(self.label_map.space))
        if not any(pixels):
            reason = f"no pixel of it belongs to a class{self._of(raw)}"
            raise _DefectError(raw.label or raw.image, reason, "nothing labelled")
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


def _unreadable(path: Path, error: Exception) -> _DefectError:
    return _DefectError(path, str(error).removeprefix(f"{path} "), "unreadable")


def portable(path: Path, root: Path) -> str:
    """Return `path` relative to `root` if both are under `PINMEM_HOME`, which may move."""
    return os.path.relpath(path, root) if path.is_relative_to(home()) else str(path)


def _state(path: Path | None) -> list[object] | None:
    """Return the path, size and modification time of a file."""
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return [str(path)]  # reported when the file is opened
    return [str(path), status.st_size, status.st_mtime_ns]
