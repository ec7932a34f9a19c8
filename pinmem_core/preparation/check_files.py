"""Checking the files of one sample against its line in the manifest."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.errors import DataError
from pinmem_core.images import check_picture, image_size, read_train_ids
from pinmem_core.preparation.prepared import RECORDS
from pinmem_core.preparation.records import Record, count_pixels, file_digest, label_digest
from pinmem_core.preparation.samples import Sample


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be: a file, and what is wrong with it."""

    file: str
    reason: str


@dataclass(frozen=True)
class Checked:
    """What became of a sample.

    Attributes:
        findings: At most one for its image and one for its label.
        label_sha256: Of its trainIds as they lie on disk; None where they were not read.
    """

    findings: tuple[Finding, ...]
    label_sha256: str | None


def check_files(
    sample: Sample, record: Record | None, *, headers_only: bool, deep: bool = False
) -> Checked:
    """Check the image and the label of `sample`.

    Args:
        sample: Paths absolute.
        record: What `prepare` noted of it, if anything.
        headers_only: Look at the existence, form and size of the files, not at their pixels.
        deep: Compare the SHA-256 of the image with the recorded one, too.
    """
    findings: list[Finding] = []
    sha256 = None
    with _noting(findings, sample.image):
        if not headers_only:
            check_picture(sample.image)
        if deep and record and file_digest(sample.image) != record.image_sha256:
            raise DataError("is another file than 'prepare' saw: its SHA-256 differs")
        _check_size(sample, sample.image)
    with _noting(findings, sample.label):
        _check_size(sample, sample.label)
        _check_form(sample.label)
        if not headers_only:
            train_ids = read_train_ids(sample.label)
            sha256 = label_digest(train_ids)
            _check_record(train_ids, sha256, record)
    return Checked(tuple(findings), sha256)


@contextmanager
def _noting(findings: list[Finding], path: Path) -> Iterator[None]:
    """Turn what is wrong with `path` into a finding."""
    try:
        yield
    except DataError as error:
        reason = error.message.removeprefix(f"{path} ").removesuffix(".")
        findings.append(Finding(str(path), reason))
    except OSError as error:
        findings.append(Finding(str(path), f"cannot be read: {error.strerror or error}"))


def _check_size(sample: Sample, path: Path) -> None:
    width, height = image_size(path)
    if (width, height) != (sample.width, sample.height):
        expected = f"{sample.width}x{sample.height}"
        raise DataError(f"is {width}x{height}, but the manifest says {expected}")


def _check_form(label: Path) -> None:
    with Image.open(label) as picture:
        if (picture.format, picture.mode) != ("PNG", "L"):
            form = f"a {picture.format} of mode '{picture.mode}'"
            raise DataError(f"is {form}, not an 8-bit single-channel PNG")


def _check_record(train_ids: NDArray[np.uint8], sha256: str, record: Record | None) -> None:
    if record and record.label_sha256 != sha256:
        raise DataError("holds other trainIds than 'prepare' wrote")
    if record and record.pixels != count_pixels(train_ids):
        raise DataError(f"holds other numbers of pixels than {RECORDS} says")
