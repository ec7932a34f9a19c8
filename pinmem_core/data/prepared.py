"""Prepared datasets: opening them, and selecting samples."""

import hashlib
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pinmem_core.data.card import DatasetCard
from pinmem_core.data.catalog import get_card
from pinmem_core.data.samples import Sample, Samples, require_last_line
from pinmem_core.documents import read_json_object, validation_message
from pinmem_core.errors import ConfigError, DataError, unknown_name
from pinmem_core.label_space import CITYSCAPES, LabelSpace, label_spaces
from pinmem_core.paths import dataset_root

SCHEMA_VERSION = 2
MANIFEST = "manifest.jsonl"
RECORDS = "conversions.jsonl"
"""Records of the converted samples, by which `prepare` converts only what is new."""
SUMMARY = "dataset.json"
LARGEST_SUMMARY = 1 << 28
"""Bytes of a `dataset.json`, which lists every file that was left out."""


class _OtherLayout(BaseModel):
    label_map: dict[str, str]


class _Reencoding(BaseModel):
    format: str
    quality: int
    height: int | None


class _Excluded(BaseModel):
    file: str
    reason: str
    rule: str


class _Summary(BaseModel):
    """The keys of `dataset.json` that are read, where they are present."""

    model_config = ConfigDict(strict=True)

    bytes: int | None = Field(None, ge=0)
    digest: str | None = None
    layout: str | None = None
    title: str = ""
    label_map: dict[str, str] = {}
    label_space: LabelSpace | None = None
    other_layouts: dict[str, _OtherLayout] = {}
    reencoding: _Reencoding | None = None
    counts: dict[str, int] = {}
    splits: list[str] = []
    sources: list[str] = []
    excluded: list[_Excluded] = []


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared dataset on disk.

    Attributes:
        name: Name of the dataset.
        root: Folder of the dataset.
        samples: Samples in the order of the manifest, with absolute paths.
        summary: Content of `dataset.json`.
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
        stamp = _stamp(root)
        if stamp and stamp == _opened.get(root, (None, None))[0]:
            return _opened[root][1]
        summary = read_summary(name)
        try:
            samples = Samples.read(root / MANIFEST, label_space_of(name, summary))
        except (OSError, DataError) as error:
            raise _damaged(name, root, error) from error
        dataset = cls(name, root, samples, summary)
        _opened.pop(root, None)
        if stamp and stamp == _stamp(root):
            _opened[root] = stamp, dataset
        return dataset

    @property
    def label_space(self) -> LabelSpace:
        """The label space of the prepared labels."""
        return self.samples.label_space

    @property
    def came_in_pack(self) -> bool:
        """Whether the dataset was unpacked from a pack."""
        return not self.summary["sources"]

    @property
    def manifest(self) -> Path:
        """The file with one line for each sample."""
        return self.root / MANIFEST

    @property
    def domains(self) -> dict[str, int]:
        """Number of samples by domain."""
        return self.samples.domains

    @property
    def counts(self) -> dict[str, int]:
        """Number of samples by split."""
        return self.samples.splits


_Stamp = tuple[tuple[int, int, int], ...]
_opened: dict[Path, tuple[_Stamp, PreparedDataset]] = {}
"""The datasets that this process has opened; valid until their files change."""
_CLOCK_STEP_NS = 2_000_000_000
"""Resolution of modification times (FAT: 2 s); two changes within it may look like one."""


def _stamp(root: Path) -> _Stamp | None:
    """Return a value that changes with the dataset; None while a change could go unnoticed."""
    try:
        states = [(root / name).stat() for name in (SUMMARY, MANIFEST)]
    except OSError:
        return None
    if time.time_ns() - max(state.st_mtime_ns for state in states) < _CLOCK_STEP_NS:
        return None
    return tuple((state.st_ino, state.st_size, state.st_mtime_ns) for state in states)


def read_summary(name: str) -> dict[str, Any]:
    """Return the content of `dataset.json`, without reading the whole manifest.

    Raises:
        ConfigError: No dataset has this name.
        DataError: It is not prepared, or `dataset.json` or the end of the manifest is damaged.
    """
    root = dataset_root(name)
    if not (root / SUMMARY).exists():
        get_card(name)  # an unknown name is the more likely mistake
        raise DataError(
            f"the dataset '{name}' is not prepared: there is no {root / SUMMARY}.",
            f"Run 'pinmem data prepare {name}' (with '--from FOLDER' where you have it).",
        )
    try:
        summary = read_json_object(root / SUMMARY, LARGEST_SUMMARY)
        is_current = summary.get("schema_version") == SCHEMA_VERSION
        if is_current:
            _Summary.model_validate(summary)
        require_last_line(root / MANIFEST)
    except (OSError, DataError, ValidationError) as error:
        raise _damaged(name, root, error) from error
    if not is_current:
        raise DataError(
            f"the dataset in {root} was prepared by another version of pinmem.",
            f"Prepare it again: 'pinmem data prepare {name}'.",
        )
    return summary


def last_summary(name: str) -> dict[str, Any] | None:
    """Return `dataset.json`, even of a damaged dataset or of another version of pinmem.

    Returns:
        The content, which is empty if it cannot be read; None if the dataset is not prepared.
    """
    path = dataset_root(name) / SUMMARY
    if not path.exists():
        return None
    try:
        summary = read_json_object(path, LARGEST_SUMMARY)
        _Summary.model_validate(summary)
    except (DataError, ValidationError):
        return {}
    return summary


def options_of(summary: Mapping[str, Any], card: DatasetCard) -> list[str]:
    """Return the options of `pinmem data prepare` that a dataset was prepared with.

    Args:
        summary: Content of `dataset.json`.
        card: Card of the dataset.
    """
    options: list[str] = []
    name = summary.get("label_map", {}).get("name")
    by_default = [lay.label_maps[0] for lay in card.layouts if lay.name == summary.get("layout")]
    if name and name not in by_default:
        options += ["--label-map", name]
    if reencoding := summary.get("reencoding"):
        options += ["--reencode", reencoding["format"]]
        if reencoding["format"] != "png":
            options += ["--quality", str(reencoding["quality"])]
        if reencoding["height"]:
            options += ["--height", str(reencoding["height"])]
    return options


def label_space_of(name: str, summary: Mapping[str, Any]) -> LabelSpace:
    """Return the label space that `dataset.json` records, with the maps of today if it is known.

    Earlier versions knew only the classes of Cityscapes and recorded none; the maps of such a
    dataset to other spaces are those of its card.

    Raises:
        ValidationError: The recorded space is damaged.
    """
    recorded = summary.get("label_space")
    if recorded is not None:
        space = LabelSpace.model_validate(recorded)
        known = label_spaces().get(space.name, space)
        if not known.same_as(space):
            return space
        return known.model_copy(update={"maps": {**known.maps, **space.maps}})
    with suppress(ConfigError):
        space = get_card(name).label_map(summary.get("label_map", {}).get("name", "")).space
        if space.same_as(CITYSCAPES):
            return space
    return CITYSCAPES


def _damaged(name: str, root: Path, error: Exception) -> DataError:
    reason = str(error)
    if isinstance(error, ValidationError):
        reason = f"{SUMMARY}: {validation_message(error)}"
    return DataError(
        f"the prepared dataset in {root} is damaged: {reason.rstrip('.')}.",
        f"Prepare it again: 'pinmem data prepare {name}' (with '--from FOLDER' where you have it).",
    )


def digest(lines: Iterable[tuple[Sample, str]]) -> str:
    """Return a SHA-256 by which two prepared datasets can be compared.

    It covers the id, split, domain and size of each sample and the SHA-256 of its trainIds, but
    neither the locations of files nor the pixels of images.
    """
    entries = sorted(
        f"{s.id}\t{s.split}\t{s.domain}\t{s.width}x{s.height}\t{labels}" for s, labels in lines
    )
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


@dataclass(frozen=True)
class Selection:
    """A selection of samples: `dataset[:domain][@split]`."""

    dataset: str
    domain: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Selection":
        """Parse `dataset[:domain][@split]`.

        Raises:
            ConfigError: The text has another form, or names an unknown dataset or domain.
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


def matching(selection: Selection, split: str) -> Samples:
    """Return the samples of a selection in `split` (a group of splits, or "all"), possibly none.

    Raises:
        DataError: The dataset is not prepared.
    """
    samples = PreparedDataset.open(selection.dataset).samples
    splits = get_card(selection.dataset).split_groups.get(split, split)
    return samples.of(domain=selection.domain, split=None if split == "all" else splits)


def select(selection: Selection, default_split: str) -> Samples:
    """Return the samples of a selection in its split, or in the default one.

    Raises:
        ConfigError: The domain or the split does not exist.
        DataError: The dataset is not prepared, or the selection is empty.
    """
    split = selection.split or default_split
    chosen = matching(selection, split)
    if chosen:
        return chosen
    card, prepared = get_card(selection.dataset), PreparedDataset.open(selection.dataset)
    if selection.domain and not card.domains and selection.domain not in prepared.domains:
        raise unknown_name(f"domain of {selection.dataset}", selection.domain, prepared.domains)
    splits = ["all", *card.split_groups, *prepared.counts]
    if selection.split and split not in splits:
        raise unknown_name(f"split of {selection.dataset}", split, splits)
    raise DataError(
        f"'{selection}' holds no samples of the split '{split}'.",
        f"'{selection.dataset}@all' takes every split; 'pinmem data list' shows what is prepared.",
    )
