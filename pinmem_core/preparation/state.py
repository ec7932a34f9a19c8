"""How far a dataset has come on this machine, told without opening a picture."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pinmem_core.datasets import DatasetCard
from pinmem_core.errors import PinMemError
from pinmem_core.home import archives_root, dataset_root, raw_root
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
        bytes_prepared=_bytes_below(dataset_root(card.name)),
        bytes_archives=_bytes_below(archives_root(card.name)),
        bytes_raw=_bytes_below(raw_root(card.name)),
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
        return "ready" if is_complete(summary["counts"], summary, card) else "partial"
    return "downloaded" if _is_downloaded(card) else "absent"


def _is_downloaded(card: DatasetCard) -> bool:
    """Tell whether a whole archive, or the folder of one, is there."""
    names = [name for archive in card.archives for name in (archive.file, *archive.aliases)]
    if any((archives_root(card.name) / name).exists() for name in names):
        return True
    return any(not path.name.startswith(".") for path in raw_root(card.name).glob("*"))


def _bytes_below(folder: Path) -> int:
    """Return the size of all files below `folder`; 0 where there is none."""
    if not folder.is_dir():
        return 0
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                total += _bytes_below(Path(entry.path))
            else:
                total += entry.stat(follow_symlinks=False).st_size
    return total
