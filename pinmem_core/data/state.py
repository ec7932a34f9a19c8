"""How complete a dataset is, and what of it is on disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pinmem_core.data.archives import unpacked_bytes
from pinmem_core.data.card import DatasetCard
from pinmem_core.data.prepared import read_summary
from pinmem_core.errors import PinMemError
from pinmem_core.paths import archives_root, dataset_root, folder_size, raw_root


@dataclass(frozen=True)
class Difference:
    """A split whose number of samples differs from the published number."""

    split: str
    published: int
    here: int


def differences(
    counts: Mapping[str, int], summary: Mapping[str, Any], card: DatasetCard
) -> list[Difference]:
    """Return the splits that differ from their published size, sorted by name.

    For a dataset from a pack, only the packed splits are compared.

    Args:
        counts: Number of prepared samples by split.
        summary: Content of `dataset.json`.
        card: Card of the dataset.
    """
    expected = summary.get("splits", card.counts)
    return [
        Difference(name, published, counts.get(name, 0))
        for name, published in sorted(card.counts.items())
        if name in expected and published != counts.get(name, 0)
    ]


def left_out(summary: Mapping[str, Any]) -> int:
    """Return the number of published samples that were left out as defective.

    One without its image or its label is missing: an archive may be unpacked in part.
    """
    not_published = ("double", "known defect", "missing partner", "not listed")
    return sum(defect["rule"] not in not_published for defect in summary.get("excluded", []))


def is_complete(counts: Mapping[str, int], summary: Mapping[str, Any], card: DatasetCard) -> bool:
    """Return whether every published sample is either prepared or left out as defective."""
    missing = sum(max(0, d.published - d.here) for d in differences(counts, summary, card))
    return missing <= left_out(summary)


Stage = Literal["absent", "downloaded", "partial", "ready", "defective"]


@dataclass(frozen=True)
class State:
    """The state of a dataset under `PINMEM_HOME`.

    Attributes:
        name: Name of the dataset.
        title: Title of the dataset.
        state: "partial" if published samples are missing; "defective" if the prepared folder
            cannot be read.
        counts: Number of prepared samples by split.
        excluded: Number of files that `prepare` left out.
        bytes_prepared: Size of the prepared dataset's own files in bytes.
        bytes_archives: Size of the downloaded files in bytes.
        bytes_raw: Size of the unpacked or synthetic files in bytes.
        digest: Digest of the prepared dataset.
        layout: Name of the layout that it was prepared from.
        label_map: Name of the label map that it was prepared with.
        problem: Reason of the state "defective".
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
    """Return the state of the dataset of `card`."""
    root = dataset_root(card.name)
    summary: dict[str, Any] = {}
    problem = None
    if root.exists():
        try:
            summary = read_summary(card.name)
        except PinMemError as error:
            problem = error.message
    # Earlier versions did not record the size.
    size = summary.get("bytes")
    return State(
        name=card.name,
        title=card.title,
        state=_stage(card, summary, problem),
        counts=dict(sorted(summary.get("counts", {}).items())),
        excluded=len(summary.get("excluded", [])),
        bytes_prepared=folder_size(root, deep=size is None) + (size or 0),
        bytes_archives=folder_size(archives_root(card.name)),
        bytes_raw=_bytes_raw(raw_root(card.name)),
        digest=summary.get("digest"),
        layout=summary.get("layout"),
        label_map=summary.get("label_map", {}).get("name"),
        problem=problem,
    )


def _stage(card: DatasetCard, summary: dict[str, Any], problem: str | None) -> Stage:
    if problem:
        return "defective"
    if summary:
        return "ready" if is_complete(summary.get("counts", {}), summary, card) else "partial"
    archives = [name for archive in card.archives for name in (archive.file, *archive.aliases)]
    is_downloaded = any((archives_root(card.name) / name).exists() for name in archives)
    is_unpacked = any(not path.name.startswith(".") for path in raw_root(card.name).glob("*"))
    return "downloaded" if is_downloaded or is_unpacked else "absent"


def _bytes_raw(root: Path) -> int:
    """Return the size of a raw folder, by the recorded sizes of unpacked archives."""
    folders = [path for path in root.glob("*") if path.is_dir() and not path.is_symlink()]
    sizes = [(folder, unpacked_bytes(folder)) for folder in folders]
    unpacked = sum(folder_size(folder) if size is None else size for folder, size in sizes)
    return folder_size(root, deep=False) + unpacked
