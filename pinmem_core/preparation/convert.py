"""One sample: checking a pair of files and writing its trainIds."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pinmem_core.errors import DataError
from pinmem_core.files import write_whole
from pinmem_core.home import home
from pinmem_core.images import check_picture, image_size, read_image
from pinmem_core.label_space import LabelMap
from pinmem_core.png import label_png
from pinmem_core.preparation.encodings import ENCODINGS, Decoder
from pinmem_core.preparation.layouts import RawSample
from pinmem_core.preparation.records import Record, count_pixels, file_digest, label_digest
from pinmem_core.preparation.reencoding import Reencoding
from pinmem_core.preparation.samples import Sample, own_path

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
            check_picture(raw.image, pixels=self.reencoding is None)
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
            write_whole(self.folder / image, self._reencoded(raw, self.reencoding))
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
        write_whole(self.folder / label, label_png(train_ids))
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
