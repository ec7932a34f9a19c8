"""Verification of a prepared dataset against its files and its card."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.data.card import DatasetCard
from pinmem_core.data.catalog import get_card
from pinmem_core.data.convert import Record, count_pixels, file_digest, label_digest, read_records
from pinmem_core.data.prepared import (
    MANIFEST,
    RECORDS,
    SUMMARY,
    PreparedDataset,
    differences,
    digest,
    is_complete,
    left_out,
)
from pinmem_core.data.samples import Sample
from pinmem_core.errors import BusyError, ConfigError, DataError
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.home import dataset_root
from pinmem_core.images import check_image, image_size, read_train_ids
from pinmem_core.parallel import parallel_map


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
            check_image(sample.image)
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


__all__ = ["Finding", "Verification", "verify"]

_SHOWN = 3


@dataclass(frozen=True)
class Verification:
    """What was found wrong with a prepared dataset.

    Attributes:
        checked: Number of samples looked at.
        findings: None of them if all is well.
        digest: Of the labels as they lie on disk; None where not every label was read.
        counts: Number of samples by split.
    """

    checked: int
    findings: tuple[Finding, ...]
    digest: str | None
    counts: dict[str, int]


def verify(
    name: str,
    *,
    headers_only: bool = False,
    deep: bool = False,
    jobs: int | None = None,
    on_event: Listener = ignore,
) -> Verification:
    """Check every file of the prepared dataset `name`, and what it says of itself.

    Args:
        name: Of the dataset.
        headers_only: Look at the existence, form and size of pictures, not at their pixels.
        deep: Compare every image with the SHA-256 that `prepare` recorded, too.
        jobs: Samples checked at once; None for one a core.
        on_event: Hears of the progress.

    Raises:
        ConfigError: No dataset has this name, or both `headers_only` and `deep` are asked for.
        DataError: It is not prepared, its manifest cannot be read, or no SHA-256 was recorded.
        BusyError: Another process has replaced the dataset meanwhile.
    """
    if headers_only and deep:
        raise ConfigError(
            "a deep check reads whole files, not headers only.", "Choose one of them."
        )
    at_first = _identity(name)
    dataset = PreparedDataset.open(name)
    card = get_card(name)
    records = {record.sample.id: record for record in read_records(dataset.root)}
    if deep and any(record.image_sha256 is None for record in records.values()):
        raise DataError(
            f"no SHA-256 of the images of {name} was recorded.",
            f"Record them: 'pinmem data prepare {name} --hash-images'.",
        )

    def check(sample: Sample) -> Checked:
        record = records.get(sample.id)
        return check_files(sample, record, headers_only=headers_only, deep=deep)

    results = _check_all(dataset, check, jobs, on_event)
    found_digest = _digest(dataset, results)
    findings = (
        *_against_summary(dataset, found_digest),
        *_against_records(dataset, records),
        *_against_card(dataset, card),
        *(finding for result in results for finding in result.findings),
        *_strays(dataset),
    )
    if findings and _identity(name) != at_first:
        raise BusyError(f"the dataset {name} was replaced while it was checked.", "Check it again.")
    return Verification(len(results), findings, found_digest, dataset.counts)


def _identity(name: str) -> tuple[int, int] | None:
    """Return what changes when `prepare` puts a new folder in a dataset's place."""
    try:
        state = dataset_root(name).stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _check_all(
    dataset: PreparedDataset,
    check: Callable[[Sample], Checked],
    jobs: int | None,
    on_event: Listener,
) -> list[Checked]:
    results = []
    with closing(parallel_map(check, dataset.samples, jobs)) as checks:
        for done, result in enumerate(checks, start=1):
            results.append(result)
            on_event(Progress("verifying", done, len(dataset.samples)))
    return results


def _digest(dataset: PreparedDataset, results: Sequence[Checked]) -> str | None:
    labels = [result.label_sha256 for result in results if result.label_sha256]
    if len(labels) < len(dataset.samples):
        return None
    return digest(zip(dataset.samples, labels, strict=True))


def _against_summary(dataset: PreparedDataset, found_digest: str | None) -> Iterator[Finding]:
    """Yield where `dataset.json` differs from the manifest or the labels."""
    manifest, summary = str(dataset.root / MANIFEST), str(dataset.root / SUMMARY)
    ids = Counter(sample.id for sample in dataset.samples)
    repeated = [sample_id for sample_id, times in ids.items() if times > 1]
    if repeated:
        yield Finding(manifest, f"names samples more than once: {_few(repeated)}")
    said = dataset.summary.get("counts", {})
    if said != dataset.counts:
        reason = f"says {_counts(said)}, but the manifest holds {_counts(dataset.counts)}"
        yield Finding(summary, reason)
    if found_digest not in (None, dataset.summary.get("digest")):
        yield Finding(summary, "says another digest than the labels have")


def _against_records(dataset: PreparedDataset, records: Mapping[str, Record]) -> Iterator[Finding]:
    """Yield where what `prepare` noted differs from the manifest."""
    path = str(dataset.root / RECORDS)
    lacking = [sample.id for sample in dataset.samples if sample.id not in records]
    if lacking:
        yield Finding(path, f"lacks samples of the manifest: {_few(lacking)}")
    surplus = sorted(records.keys() - {sample.id for sample in dataset.samples})
    if surplus:
        yield Finding(path, f"names samples that the manifest lacks: {_few(surplus)}")
    noted = {sample_id: record.sample.below(dataset.root) for sample_id, record in records.items()}
    other = [sample.id for sample in dataset.samples if noted.get(sample.id, sample) != sample]
    if other:
        yield Finding(path, f"differs from the manifest: {_few(other)}")


def _against_card(dataset: PreparedDataset, card: DatasetCard) -> Iterator[Finding]:
    """Yield where the dataset is not what its card says today."""
    finding = partial(Finding, str(dataset.root / SUMMARY))
    version = dataset.summary.get("card_version")
    if version != card.version:
        yield finding(f"was prepared by version {version} of the card, which is at {card.version}")
    if not _has_label_maps(dataset, card):
        yield finding("was prepared with another label map than the card's today")
    known = dataset.counts, dataset.summary, card
    for split in [] if is_complete(*known) else differences(*known):
        yield finding(
            f"split {split.split}: {split.published} published, {split.here} here, "
            f"{left_out(dataset.summary)} left out of all splits"
        )


def _has_label_maps(dataset: PreparedDataset, card: DatasetCard) -> bool:
    others = dataset.summary.get("other_layouts", {}).values()
    used = [dataset.summary.get("label_map", {}), *(other["label_map"] for other in others)]
    try:
        return all(card.label_map(m.get("name", "")).digest == m.get("digest") for m in used)
    except ConfigError:
        return False


def _strays(dataset: PreparedDataset) -> Iterator[Finding]:
    """Yield the dataset's own pictures that no line of the manifest names."""
    named = {path for sample in dataset.samples for path in (sample.image, sample.label)}
    root = Path(os.path.normpath(dataset.root))  # as the samples' paths are
    for folder in ("images", "labels"):
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and path not in named:
                yield Finding(str(path), "is named by no line of the manifest")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{split} {count}" for split, count in counts.items()) or "nothing"


def _few(values: Sequence[str]) -> str:
    rest = len(values) - _SHOWN
    return ", ".join(values[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
