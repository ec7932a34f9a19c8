"""Checking a prepared dataset against itself, its files and its card."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pinmem_core.datasets import DatasetCard, get_card
from pinmem_core.errors import BusyError, ConfigError, DataError
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.home import dataset_root
from pinmem_core.parallel import in_parallel
from pinmem_core.preparation.check_files import Checked, Finding, check_files
from pinmem_core.preparation.completeness import differences, is_complete, left_out
from pinmem_core.preparation.prepared import (
    MANIFEST,
    RECORDS,
    SUMMARY,
    PreparedDataset,
    digest,
)
from pinmem_core.preparation.records import Record, read_records
from pinmem_core.preparation.samples import Sample

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
    with closing(in_parallel(check, dataset.samples, jobs)) as checks:
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
