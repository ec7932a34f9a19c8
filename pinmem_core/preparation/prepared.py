"""A prepared dataset: the only thing that training and evaluation read.

It is a folder with `dataset.json` (what it was made from and by), `manifest.jsonl` (a line a
sample) and `labels/` (8-bit trainId PNGs in 256 folders). Images stay where the user has them.
"""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pinmem_core.datasets import get_card
from pinmem_core.documents import read_json_object
from pinmem_core.errors import ConfigError, DataError, unknown_name
from pinmem_core.home import dataset_root
from pinmem_core.preparation.samples import Sample, Samples, require_last_line

SCHEMA_VERSION = 2
MANIFEST = "manifest.jsonl"
RECORDS = "conversions.jsonl"
"""What `prepare` needs to know to do only what is missing."""
SUMMARY = "dataset.json"
LARGEST_SUMMARY = 1 << 28
"""Bytes; it names every file that was left out."""


class _OtherLayout(BaseModel):
    label_map: dict[str, str]


class _Excluded(BaseModel):
    file: str
    reason: str
    rule: str


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared dataset on disk.

    Attributes:
        name: Of the dataset.
        root: Its folder.
        samples: In the manifest's order; paths absolute.
        summary: What `dataset.json` says.
    """

    name: str
    root: Path
    samples: Samples
    summary: dict[str, Any]

    @classmethod
    def open(cls, name: str) -> "PreparedDataset":
        """Open the prepared dataset `name`.

        Raises:
            ConfigError: No dataset has this name.
            DataError: It is not prepared yet, or its folder is damaged.
        """
        root = dataset_root(name)
        _require_prepared(name, root)
        stamp = _stamp(root)
        if stamp and stamp == _opened.get(root, (None, None))[0]:
            return _opened[root][1]
        try:
            summary = _read_summary(root)
            require_last_line(root / MANIFEST)
            samples = Samples.read(root / MANIFEST)
        except _DAMAGE as error:
            raise _damaged(name, root, error) from error
        _require_version(name, root, summary)
        dataset = cls(name, root, samples, summary)
        _opened.pop(root, None)
        if stamp and stamp == _stamp(root):
            _opened[root] = stamp, dataset
        return dataset

    @property
    def came_in_pack(self) -> bool:
        """Whether the dataset was unpacked from a pack, which alone has its files."""
        return not self.summary["sources"]

    @property
    def manifest(self) -> Path:
        """The file with a line a sample."""
        return self.root / MANIFEST

    @property
    def domains(self) -> dict[str, int]:
        """Number of samples by domain."""
        return self.samples.domains

    @property
    def counts(self) -> dict[str, int]:
        """Number of samples by split."""
        return self.samples.splits


_opened: dict[Path, tuple["_Stamp", PreparedDataset]] = {}
"""The datasets that this process has opened, for as long as their files do not change."""

_Stamp = tuple[tuple[int, int, int], ...]
_CLOCK_STEP_NS = 2_000_000_000
"""Two changes of a file within this time may leave it the same time of change (FAT: 2 s)."""
_DAMAGE = (OSError, DataError, ValidationError)


def _stamp(root: Path) -> _Stamp | None:
    """Return what changes when a dataset does; None while a change could go unseen."""
    try:
        states = [(root / name).stat() for name in (SUMMARY, MANIFEST)]
    except OSError:
        return None
    if time.time_ns() - max(state.st_mtime_ns for state in states) < _CLOCK_STEP_NS:
        return None
    return tuple((state.st_ino, state.st_size, state.st_mtime_ns) for state in states)


def read_summary(name: str) -> dict[str, Any]:
    """Return what `dataset.json` says, without reading the whole manifest.

    Raises:
        ConfigError: No dataset has this name.
        DataError: It is not prepared, or `dataset.json` or the end of the manifest is damaged.
    """
    root = dataset_root(name)
    _require_prepared(name, root)
    try:
        summary = _read_summary(root)
        require_last_line(root / MANIFEST)
    except _DAMAGE as error:
        raise _damaged(name, root, error) from error
    _require_version(name, root, summary)
    return summary


def _read_summary(root: Path) -> dict[str, Any]:
    summary = read_json_object(root / SUMMARY, LARGEST_SUMMARY)
    if summary.get("schema_version") == SCHEMA_VERSION:
        _Summary.model_validate(summary)
    return summary


def _require_prepared(name: str, root: Path) -> None:
    if not (root / SUMMARY).exists():
        get_card(name)  # a name that nobody knows is the likelier mistake
        raise DataError(
            f"the dataset '{name}' is not prepared: there is no {root / SUMMARY}.",
            f"Run 'pinmem data prepare {name}' (with '--from FOLDER' where you have it).",
        )


def _require_version(name: str, root: Path, summary: dict[str, Any]) -> None:
    if summary.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"the dataset in {root} was prepared by another version of pinmem.",
            f"Prepare it again: 'pinmem data prepare {name}'.",
        )


def _damaged(name: str, root: Path, error: Exception) -> DataError:
    return DataError(
        f"the prepared dataset in {root} is damaged: {_reason(error)}.",
        f"Prepare it again: 'pinmem data prepare {name}'.",
    )


class _Summary(BaseModel):
    """What others rely on in `dataset.json`, where it holds it."""

    model_config = ConfigDict(strict=True)

    bytes: int | None = Field(None, ge=0)
    digest: str | None = None
    layout: str | None = None
    title: str = ""
    label_map: dict[str, str] = {}
    other_layouts: dict[str, _OtherLayout] = {}
    counts: dict[str, int] = {}
    splits: list[str] = []
    sources: list[str] = []
    excluded: list[_Excluded] = []


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{SUMMARY}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    return error.message.rstrip(".") if isinstance(error, DataError) else str(error)


def digest(lines: Iterable[tuple[Sample, str]]) -> str:
    """Return a SHA-256 by which two people can compare what they prepared.

    It covers each sample's id, split, domain and size and the SHA-256 of its trainIds; not where
    the files lie, and not the pixels of the images.
    """
    entries = sorted(
        f"{s.id}\t{s.split}\t{s.domain}\t{s.width}x{s.height}\t{labels}" for s, labels in lines
    )
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


@dataclass(frozen=True)
class Selection:
    """Which samples of a dataset are meant: `dataset[:domain][@split]`."""

    dataset: str
    domain: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Selection":
        """Parse `dataset[:domain][@split]`.

        Raises:
            ConfigError: The text is not of that form, or names an unknown dataset or domain.
        """
        rest, at, split = text.strip().partition("@")
        dataset, colon, domain = rest.partition(":")
        if not dataset or (colon and not domain) or (at and not split):
            raise ConfigError(f"'{text}' is not of the form dataset, dataset:domain or ...@split.")
        known = get_card(dataset).domains
        if domain and known and domain not in known:
            raise unknown_name(f"domain of {dataset}", domain, known)
        return cls(dataset, domain or None, split or None)

    def __str__(self) -> str:
        """Return the text that parses to this selection."""
        domain = f":{self.domain}" if self.domain else ""
        return f"{self.dataset}{domain}" + (f"@{self.split}" if self.split else "")

    def covers(self, other: "Selection") -> bool:
        """Tell whether samples of `other` may be among this selection's, splits aside."""
        same_domain = None in (self.domain, other.domain) or self.domain == other.domain
        return self.dataset == other.dataset and same_domain


def matching(selection: Selection, split: str) -> Samples:
    """Return the samples of a selection in `split` (or "all"); none is an answer, too.

    Raises:
        DataError: The dataset is not prepared.
    """
    samples = PreparedDataset.open(selection.dataset).samples
    return samples.of(domain=selection.domain, split=None if split == "all" else split)


def select(selection: Selection, default_split: str) -> Samples:
    """Return the samples that `selection` means, in its own split or the default one.

    Raises:
        ConfigError: The split does not exist.
        DataError: The dataset is not prepared, or the selection is empty.
    """
    split = selection.split or default_split
    chosen = matching(selection, split)
    if chosen:
        return chosen
    splits = ["all", *PreparedDataset.open(selection.dataset).counts]
    if selection.split and split not in splits:
        raise unknown_name(f"split of {selection.dataset}", split, splits)
    raise DataError(
        f"'{selection}' holds no samples of the split '{split}'.",
        f"'{selection.dataset}@all' takes every split; 'pinmem data list' shows what is prepared.",
    )
