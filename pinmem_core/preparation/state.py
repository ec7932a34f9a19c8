"""How far a dataset has come on this machine, found out without looking at its pictures.

A dataset may have a million files. Their sizes are in what `prepare` and unpacking have recorded;
only what has no such record is counted file by file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pinmem_core.acquisition.archives import unpacked_bytes
from pinmem_core.datasets import DatasetCard
from pinmem_core.errors import PinMemError
from pinmem_core.home import archives_root, dataset_root, raw_root
from pinmem_core.paths import bytes_below
from pinmem_core.preparation.completeness import is_complete
from pinmem_core.preparation.prepared import read_summary

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
        bytes_archives=bytes_below(archives_root(card.name)),
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
    return bytes_below(root) if pictures is None else pictures + bytes_below(root, deep=False)


def _bytes_raw(root: Path) -> int:
    """Return the size of what was unpacked, drawn or put into a folder."""
    folders = [path for path in root.glob("*") if path.is_dir() and not path.is_symlink()]
    known = [unpacked_bytes(folder) for folder in folders]
    return bytes_below(root, deep=False) + sum(
        bytes_below(folder) if size is None else size
        for folder, size in zip(folders, known, strict=True)
    )
