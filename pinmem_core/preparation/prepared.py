"""A prepared dataset: the only thing that training and evaluation read.

It is a folder with `dataset.json` (what it was made from and by), `manifest.jsonl` (a line a
sample) and `labels/` (8-bit trainId PNGs). Images stay where the user has them.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pinmem_core.datasets import get_card
from pinmem_core.documents import read_json_lines, read_json_object
from pinmem_core.errors import ConfigError, DataError, unknown_name
from pinmem_core.home import dataset_root
from pinmem_core.images import read_image, read_train_ids

SCHEMA_VERSION = 2
MANIFEST = "manifest.jsonl"
RECORDS = "conversions.jsonl"
"""What `prepare` needs to know to do only what is missing."""
SUMMARY = "dataset.json"
_LARGEST_SUMMARY = 1 << 28
"""Bytes; it names every file that was left out."""


@dataclass(frozen=True)
class Sample:
    """One line of a manifest.

    Attributes:
        id: Unique in its dataset.
        image: Path of the picture, absolute or relative to the dataset's root.
        label: Path of the trainId PNG, likewise.
        split: "train", "val" or "test".
        domain: Domain inside the dataset.
        width: Of image and label, in pixels.
        height: Likewise.
    """

    id: str
    image: Path
    label: Path
    split: str
    domain: str
    width: int
    height: int

    def to_json(self) -> str:
        """Return the sample as a line of a manifest."""
        return json.dumps({**vars(self), "image": str(self.image), "label": str(self.label)})

    def read(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the image (H, W, 3) and its trainIds (H, W).

        `prepare` and `verify` read files to their last byte; this only decodes them.

        Raises:
            DataError: A file cannot be read, the label holds other values than trainIds, or the
                two differ in size.
        """
        image = read_image(self.image, checked=True)
        train_ids = read_train_ids(self.label, checked=True)
        if train_ids.shape != image.shape[:2]:
            raise DataError(
                f"{self.label} is {train_ids.shape[1]}x{train_ids.shape[0]}, but its image "
                f"{self.image} is {image.shape[1]}x{image.shape[0]}.",
                "Prepare the dataset again: 'pinmem data prepare' leaves such pairs out.",
            )
        return image, train_ids

    @classmethod
    def of_fields(cls, fields: dict[str, Any]) -> "Sample":
        """Return the sample of a manifest's line.

        Raises:
            TypeError: A field is missing, unknown, or of another type.
        """
        sample = cls(**fields | {key: Path(fields[key]) for key in ("image", "label")})
        texts = (sample.id, sample.split, sample.domain)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("an id, split or domain is not a text")
        if not all(type(side) is int and side > 0 for side in (sample.width, sample.height)):
            raise TypeError("a width or height is not a number of pixels")
        return sample

    def below(self, root: Path) -> "Sample":
        """Return the sample with absolute paths; relative ones begin at `root`."""
        image, label = (Path(os.path.normpath(root / path)) for path in (self.image, self.label))
        return replace(self, image=image, label=label)


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
    samples: tuple[Sample, ...]
    summary: dict[str, Any]

    @classmethod
    def open(cls, name: str) -> "PreparedDataset":
        """Open the prepared dataset `name`.

        Raises:
            ConfigError: No dataset has this name.
            DataError: It is not prepared yet, or its folder is damaged.
        """
        root = dataset_root(name)
        if not (root / SUMMARY).exists():
            get_card(name)  # a name that nobody knows is the likelier mistake
        if not (root / SUMMARY).exists():
            raise DataError(
                f"the dataset '{name}' is not prepared: there is no {root / SUMMARY}.",
                f"Run 'pinmem data prepare {name}' (with '--from FOLDER' where you have it).",
            )
        try:
            summary = read_json_object(root / SUMMARY, _LARGEST_SUMMARY)
            version = summary.get("schema_version")
            if version == SCHEMA_VERSION:
                _Summary.model_validate(summary)
            if not (root / MANIFEST).is_file():
                raise DataError(f"there is no {MANIFEST}.")
            lines = read_json_lines(root / MANIFEST, Sample.of_fields)
            samples = tuple(sample.below(root) for sample in lines)
        except (DataError, ValidationError) as error:
            raise DataError(
                f"the prepared dataset in {root} is damaged: {_reason(error)}.",
                f"Prepare it again: 'pinmem data prepare {name}'.",
            ) from error
        if version != SCHEMA_VERSION:
            raise DataError(
                f"the dataset in {root} was prepared by another version of pinmem.",
                f"Prepare it again: 'pinmem data prepare {name}'.",
            )
        return cls(name, root, samples, summary)

    @property
    def manifest(self) -> Path:
        """The file with a line a sample."""
        return self.root / MANIFEST

    @property
    def domains(self) -> dict[str, int]:
        """Number of samples by domain."""
        return dict(sorted(Counter(sample.domain for sample in self.samples).items()))

    @property
    def counts(self) -> dict[str, int]:
        """Number of samples by split."""
        return dict(sorted(Counter(sample.split for sample in self.samples).items()))


class _Summary(BaseModel):
    """What others rely on in `dataset.json`, where it holds it."""

    model_config = ConfigDict(strict=True)

    digest: str | None = None
    layout: str | None = None
    title: str = ""
    label_map: dict[str, str] = {}
    other_layouts: dict[str, _OtherLayout] = {}
    counts: dict[str, int] = {}
    splits: list[str] = []
    sources: list[str] = []
    excluded: list[_Excluded] = []


def _reason(error: DataError | ValidationError) -> str:
    if isinstance(error, DataError):
        return error.message.rstrip(".")
    first = error.errors()[0]
    return f"{SUMMARY}: {'.'.join(map(str, first['loc']))}: {first['msg']}"


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


def matching(selection: Selection, split: str) -> list[Sample]:
    """Return the samples of a selection in `split` (or "all"); none is an answer, too.

    Raises:
        DataError: The dataset is not prepared.
    """
    return [
        sample
        for sample in PreparedDataset.open(selection.dataset).samples
        if selection.domain in (None, sample.domain) and split in ("all", sample.split)
    ]


def select(selection: Selection, default_split: str) -> list[Sample]:
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
