"""Verification of a prepared dataset against its files and its card."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pinmem_core.data.card import DatasetCard
from pinmem_core.data.catalog import get_card
from pinmem_core.data.convert import Record, count_pixels, file_digest, label_digest, read_records
from pinmem_core.data.prepared import MANIFEST, RECORDS, SUMMARY, PreparedDataset, digest
from pinmem_core.data.samples import Sample
from pinmem_core.data.state import differences, is_complete, left_out
from pinmem_core.errors import BusyError, ConfigError, DataError
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.images import check_image, image_size
from pinmem_core.parallel import parallel_map
from pinmem_core.paths import dataset_root

_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """A problem: the file, and what is wrong with it."""

    file: str
    reason: str


@dataclass(frozen=True)
class Checked:
    """Result for one sample.

    Attributes:
        findings: At most one for the image and one for the label.
        label_sha256: SHA-256 of the trainIds on disk; None if they were not read.
    """

    findings: tuple[Finding, ...]
    label_sha256: str | None


@dataclass(frozen=True)
class Verification:
    """Result for a prepared dataset.

    Attributes:
        checked: Number of samples.
        findings: Problems; empty for an intact dataset.
        digest: Digest of the labels on disk; None if a label was not read.
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
    """Check every sample of a prepared dataset, and the dataset against its card.

    Args:
        name: Name of the dataset.
        headers_only: Check the existence, format and size of files, but not their pixels.
        deep: Also compare the SHA-256 of images with the recorded ones.
        jobs: Number of threads; None for one per core.
        on_event: Callback for progress events.

    Raises:
        ConfigError: No dataset has this name, or both `headers_only` and `deep` are given.
        DataError: The dataset is not prepared, its manifest is damaged, or its images were not
            hashed.
        BusyError: Another process has replaced the dataset meanwhile.
    """
    if headers_only and deep:
        raise ConfigError(
            "a deep check reads whole files, not headers only.", "Choose one of them."
        )
    identity = _identity(name)
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

    results = []
    with closing(parallel_map(check, dataset.samples, jobs)) as checks:
        for done, result in enumerate(checks, start=1):
            results.append(result)
            on_event(Progress("verifying", done, len(dataset.samples)))
    labels = [result.label_sha256 for result in results if result.label_sha256]
    is_whole = len(labels) == len(dataset.samples)
    actual = digest(zip(dataset.samples, labels, strict=True)) if is_whole else None
    findings = (
        *_against_summary(dataset, actual),
        *_against_records(dataset, records),
        *_against_card(dataset, card),
        *(finding for result in results for finding in result.findings),
        *_unknown_files(dataset),
    )
    if findings and _identity(name) != identity:
        raise BusyError(f"the dataset {name} was replaced while it was checked.", "Check it again.")
    return Verification(len(results), findings, actual, dataset.counts)


def check_files(
    sample: Sample, record: Record | None, *, headers_only: bool, deep: bool = False
) -> Checked:
    """Check the image and the label of a sample.

    Args:
        sample: Sample with absolute paths, read as it is stored.
        record: Record of the sample, if there is one.
        headers_only: Check the existence, format and size of files, but not their pixels.
        deep: Also compare the SHA-256 of the image with the recorded one.
    """
    findings: list[Finding] = []
    sha256 = None
    with _collect(findings, sample.image):
        if not headers_only:
            check_image(sample.image)
        if deep and record and file_digest(sample.image) != record.image_sha256:
            raise DataError("is another file than 'prepare' saw: its SHA-256 differs")
        _check_size(sample, sample.image)
    with _collect(findings, sample.label):
        _check_size(sample, sample.label)
        with Image.open(sample.label) as image:
            if (image.format, image.mode) != ("PNG", "L"):
                actual = f"a {image.format} of mode '{image.mode}'"
                raise DataError(f"is {actual}, not an 8-bit single-channel PNG")
        if not headers_only:
            train_ids = sample.reading.read(sample.label)
            sha256 = label_digest(train_ids)
            if record and record.label_sha256 != sha256:
                raise DataError("holds other trainIds than 'prepare' wrote")
            classes = len(sample.reading.own)
            if record and record.pixels != count_pixels(train_ids, classes):
                raise DataError(f"holds other numbers of pixels than {RECORDS} says")
    return Checked(tuple(findings), sha256)


@contextmanager
def _collect(findings: list[Finding], path: Path) -> Iterator[None]:
    """Add an error of the block to `findings`."""
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


def _identity(name: str) -> tuple[int, int] | None:
    """Return a value that changes when `prepare` replaces the folder of a dataset."""
    try:
        state = dataset_root(name).stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _against_summary(dataset: PreparedDataset, actual_digest: str | None) -> Iterator[Finding]:
    """Yield the differences between `dataset.json` and the manifest or the labels."""
    manifest, summary = str(dataset.root / MANIFEST), str(dataset.root / SUMMARY)
    ids = Counter(sample.id for sample in dataset.samples)
    repeated = [sample_id for sample_id, times in ids.items() if times > 1]
    if repeated:
        yield Finding(manifest, f"names samples more than once: {_few(repeated)}")
    recorded = dataset.summary.get("counts", {})
    if recorded != dataset.counts:
        reason = f"says {_counts(recorded)}, but the manifest holds {_counts(dataset.counts)}"
        yield Finding(summary, reason)
    if actual_digest not in (None, dataset.summary.get("digest")):
        yield Finding(summary, "says another digest than the labels have")


def _against_records(dataset: PreparedDataset, records: Mapping[str, Record]) -> Iterator[Finding]:
    """Yield the differences between the records and the manifest."""
    path = str(dataset.root / RECORDS)
    missing = [sample.id for sample in dataset.samples if sample.id not in records]
    if missing:
        yield Finding(path, f"lacks samples of the manifest: {_few(missing)}")
    surplus = sorted(records.keys() - {sample.id for sample in dataset.samples})
    if surplus:
        yield Finding(path, f"names samples that the manifest lacks: {_few(surplus)}")
    samples = {key: record.sample.below(dataset.root) for key, record in records.items()}
    different = [
        sample.id for sample in dataset.samples if samples.get(sample.id, sample) != sample
    ]
    if different:
        yield Finding(path, f"differs from the manifest: {_few(different)}")


def _against_card(dataset: PreparedDataset, card: DatasetCard) -> Iterator[Finding]:
    """Yield the differences between the dataset and its card today."""
    path, summary = str(dataset.root / SUMMARY), dataset.summary
    version = summary.get("card_version")
    if version != card.version:
        reason = f"was prepared by version {version} of the card, which is at {card.version}"
        yield Finding(path, reason)
    others = [other["label_map"] for other in summary.get("other_layouts", {}).values()]
    try:
        maps = [summary.get("label_map", {}), *others]
        is_same = all(card.label_map(m.get("name", "")).digest == m.get("digest") for m in maps)
    except ConfigError:
        is_same = False
    if not is_same:
        yield Finding(path, "was prepared with another label map than the card's today")
    if not is_complete(dataset.counts, summary, card):
        for split in differences(dataset.counts, summary, card):
            reason = (
                f"split {split.split}: {split.published} published, {split.here} here, "
                f"{left_out(summary)} left out of all splits"
            )
            yield Finding(path, reason)


def _unknown_files(dataset: PreparedDataset) -> Iterator[Finding]:
    """Yield the images and labels in the dataset's folder that the manifest does not name."""
    named = {path for sample in dataset.samples for path in (sample.image, sample.label)}
    root = Path(os.path.normpath(dataset.root))  # as in the paths of samples
    for folder in ("images", "labels"):
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and path not in named:
                yield Finding(str(path), "is named by no line of the manifest")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{split} {count}" for split, count in counts.items()) or "nothing"


def _few(values: Sequence[str]) -> str:
    rest = len(values) - _SHOWN
    return ", ".join(values[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
