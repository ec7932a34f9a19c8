"""A prepared dataset: what training and evaluation read."""

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pinmem_core.data.archives import unpacked_bytes
from pinmem_core.data.card import DatasetCard
from pinmem_core.data.catalog import get_card
from pinmem_core.data.samples import Sample, Samples, require_last_line
from pinmem_core.documents import read_json_object
from pinmem_core.errors import ConfigError, DataError, PinMemError, unknown_name
from pinmem_core.home import archives_root, dataset_root, raw_root
from pinmem_core.paths import folder_size

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


_NOT_MISSED = {"double", "known defect", "not listed"}
"""Rules that leave out what the published counts do not count."""


@dataclass(frozen=True)
class Difference:
    """A split of which another number of samples is here than was published."""

    split: str
    published: int
    here: int


def differences(
    counts: Mapping[str, int], summary: Mapping[str, Any], card: DatasetCard
) -> list[Difference]:
    """Return the splits that are not of their published size, by name.

    Of a dataset that came in a pack only those splits that were packed.

    Args:
        counts: Number of prepared samples by split.
        summary: `dataset.json`.
        card: Card of the dataset.
    """
    expected = summary.get("splits", card.counts)
    every = [
        Difference(name, published, counts.get(name, 0))
        for name, published in sorted(card.counts.items())
        if name in expected
    ]
    return [difference for difference in every if difference.published != difference.here]


def left_out(summary: Mapping[str, Any]) -> int:
    """Return the number of samples that were found and left out as defective."""
    excluded = summary.get("excluded", [])
    return sum(defect["rule"] not in _NOT_MISSED for defect in excluded)


def is_complete(counts: Mapping[str, int], summary: Mapping[str, Any], card: DatasetCard) -> bool:
    """Tell whether no published sample is missing, those counted that were left out."""
    missing = sum(max(0, d.published - d.here) for d in differences(counts, summary, card))
    return missing <= left_out(summary)


Stage = Literal["absent", "downloaded", "partial", "ready", "defective"]


@dataclass(frozen=True)
class State:
    """What there is of a dataset under `PINMEM_HOME`.

    Attributes:
        name: Of the dataset.
        title: What it calls itself.
        state: "partial" where it is prepared, but published samples are missing; "defective" where
            its folder cannot be read.
        counts: Prepared samples by split.
        excluded: Number of files that `prepare` left out.
        bytes_prepared: Size of the prepared dataset's own files.
        bytes_archives: Size of what was downloaded for it.
        bytes_raw: Size of what was unpacked or drawn for it.
        digest: Of the prepared dataset.
        layout: Name of the layout it was prepared from.
        label_map: Name of the label map it was prepared with.
        problem: What is wrong with a defective one.
    """

    name: str
    title: str
    state: Stage
    counts: dict[str, int]
    excluded: int
    bytes_prepared: int
    bytes_archives: int
    bytes_raw: int
    digest: str | None
    layout: str | None
    label_map: str | None
    problem: str | None


def state_of(card: DatasetCard) -> State:
    """Return what there is of the dataset of `card`."""
    summary, problem = _summary(card.name)
    return State(
        name=card.name,
        title=card.title,
        state=_stage(card, summary, problem),
        counts=dict(sorted(summary.get("counts", {}).items())),
        excluded=len(summary.get("excluded", [])),
        bytes_prepared=_bytes_prepared(dataset_root(card.name), summary),
        bytes_archives=folder_size(archives_root(card.name)),
        bytes_raw=_bytes_raw(raw_root(card.name)),
        digest=summary.get("digest"),
        layout=summary.get("layout"),
        label_map=summary.get("label_map", {}).get("name"),
        problem=problem,
    )


def _summary(name: str) -> tuple[dict[str, Any], str | None]:
    """Return `dataset.json`, or what is wrong with it; neither where there is none."""
    if not dataset_root(name).exists():
        return {}, None
    try:
        return read_summary(name), None
    except PinMemError as error:
        return {}, error.message


def _stage(card: DatasetCard, summary: dict[str, Any], problem: str | None) -> Stage:
    if problem:
        return "defective"
    if summary:
        return "ready" if is_complete(summary.get("counts", {}), summary, card) else "partial"
    return "downloaded" if _is_downloaded(card) else "absent"


def _is_downloaded(card: DatasetCard) -> bool:
    """Tell whether a whole archive, or the folder of one, is there."""
    names = [name for archive in card.archives for name in (archive.file, *archive.aliases)]
    if any((archives_root(card.name) / name).exists() for name in names):
        return True
    return any(not path.name.startswith(".") for path in raw_root(card.name).glob("*"))


def _bytes_prepared(root: Path, summary: dict[str, Any]) -> int:
    """Return the size of a prepared dataset; earlier versions of pinmem recorded none."""
    pictures = summary.get("bytes")
    return folder_size(root) if pictures is None else pictures + folder_size(root, deep=False)


def _bytes_raw(root: Path) -> int:
    """Return the size of what was unpacked, drawn or put into a folder."""
    folders = [path for path in root.glob("*") if path.is_dir() and not path.is_symlink()]
    known = [unpacked_bytes(folder) for folder in folders]
    return folder_size(root, deep=False) + sum(
        folder_size(folder) if size is None else size
        for folder, size in zip(folders, known, strict=True)
    )
