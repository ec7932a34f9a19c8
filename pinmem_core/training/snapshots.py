"""Snapshots: the complete state of a run after an iteration, for an exact resume.

Batches, augmentation and the random numbers of a step are functions of (seed, iteration). So a
snapshot holds only tensors: the network, the state of the optimizer, and where they exist the state
of the method, the average of the weights and the initial weights. A snapshot is a folder that is
written under a temporary name and renamed. Its `manifest.json` holds the size and SHA-256 of each
file, so a damaged snapshot is detected, reported and skipped.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from torch import Tensor

from pinmem_core.checkpoints.checkpoint import separate_tensors
from pinmem_core.config import TrainConfig
from pinmem_core.documents import json_bytes, read_json_object
from pinmem_core.errors import DataError
from pinmem_core.events import Listener, Notice
from pinmem_core.files import remove_leftovers, sha256_of, staged_folder
from pinmem_core.renamed import current_tensors

FOLDER = "snapshots"
State = Mapping[str, Tensor]
_NAME = re.compile(r"[0-9]{8,}", re.ASCII)
_MANIFEST = "manifest.json"
_DECISIVE = {
    *("method", "method_config", "use_memory", "sources", "classes", "iterations", "batch"),
    *("pseudo_domains", "seed", "tune", "model", "loss", "meta", "optim", "augmentation"),
}
_REQUIRED, _OPTIONAL = {"model", "optimizer"}, {"method", "ema", "initial"}


class SnapshotMeta(BaseModel):
    """Metadata of a snapshot."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    iteration: NonNegativeInt
    """Number of completed iterations."""
    logged: NonNegativeInt
    """Size of `metrics.jsonl`, in bytes."""
    scaler: dict[str, Any]
    """State of the loss scaler; empty without a scaler."""
    processes: NonNegativeInt
    """Number of training processes."""
    optimizer: dict[str, Any] = {}
    """State of the optimizer that is not tensors."""
    settings: dict[str, Any] = {}
    """Result of `training_settings`; snapshots of older versions lack it."""


def training_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that decide what is trained, apart from paths and the way to compute."""
    return config.model_dump(mode="json", include=_DECISIVE)


def changed_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield the dotted keys of other values; keys that `then` lacks belong to a later version."""
    for key, value in then.items():
        other = now.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            yield from (f"{key}.{inner}" for inner in changed_settings(value, other))
        elif value != other:
            yield key


@dataclass(frozen=True)
class Snapshot:
    """A snapshot on disk.

    Attributes:
        folder: Folder of the snapshot.
        meta: Metadata of the snapshot.
    """

    folder: Path
    meta: SnapshotMeta

    def states(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors by name, of "model", "optimizer", and where written of others."""
        return {
            file.stem: current_tensors(safetensors.torch.load_file(file))
            for file in sorted(self.folder.glob("*.safetensors"))
        }


def save_snapshot(run: Path, meta: SnapshotMeta, states: Mapping[str, State], keep: int) -> None:
    """Write a snapshot, and remove all but the `keep` newest snapshots up to it.

    Snapshots of later iterations were damaged when the run was resumed. They stay until the run
    reaches their iteration again.

    Args:
        run: Folder of the run.
        meta: Metadata of the snapshot.
        states: Tensors by name, of "model", "optimizer", "method", "ema" and "initial".
        keep: Number of snapshots to keep.

    Raises:
        MachineError: The disk is full, or the folder cannot be written to.
    """
    kept = {name: state for name, state in states.items() if state or name in _REQUIRED}
    with staged_folder(run / FOLDER / f"{meta.iteration:08}") as folder:
        for name, state in kept.items():
            safetensors.torch.save_file(separate_tensors(state), folder / f"{name}.safetensors")
        files = {path.name: _fingerprint(path) for path in sorted(folder.iterdir())}
        manifest = meta.model_dump() | {"files": files}
        (folder / _MANIFEST).write_bytes(json_bytes(manifest))
    for old in [f for f in _folders(run) if int(f.name) <= meta.iteration][:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def remove_half_written(run: Path) -> None:
    """Remove incomplete snapshots of killed processes; restore one that was being replaced."""
    for path in (run / FOLDER).glob(".*"):
        remove_leftovers(path.with_name(path.name.split(".")[1]))


def newest_snapshot(run: Path, on_event: Listener) -> Snapshot | None:
    """Return the newest intact snapshot of a run, or None; warn about damaged ones."""
    for folder in reversed(_folders(run)):
        try:
            return _read(folder)
        except (OSError, ValueError, KeyError, TypeError, DataError) as error:
            reason = f"its {_MANIFEST} is invalid" if isinstance(error, ValidationError) else error
            message = f"{folder} is damaged and skipped: {str(reason).removesuffix('.')}"
            on_event(Notice(message, warning=True))
    return None


def _read(folder: Path) -> Snapshot:
    """Return the snapshot in `folder`, or raise an error of any kind if it is damaged."""
    manifest = read_json_object(folder / _MANIFEST)
    files = manifest.pop("files")
    required, optional = ({f"{name}.safetensors" for name in n} for n in (_REQUIRED, _OPTIONAL))
    if not isinstance(files, dict) or not required <= files.keys() <= required | optional:
        raise ValueError(f"its {_MANIFEST} does not list the files of a snapshot")
    for file, fingerprint in files.items():
        if _fingerprint(folder / file) != fingerprint:
            raise ValueError(f"{file} was changed after it was written")
    meta = SnapshotMeta.model_validate(manifest)
    if meta.iteration != int(folder.name):
        raise ValueError(f"its {_MANIFEST} belongs to another iteration")
    return Snapshot(folder, meta)


def _folders(run: Path) -> list[Path]:
    """Return the folders of all snapshots, oldest first."""
    folders = [path for path in (run / FOLDER).glob("[0-9]*") if _NAME.fullmatch(path.name)]
    return sorted(folders, key=lambda folder: int(folder.name))


def _fingerprint(path: Path) -> list[object]:
    return [path.stat().st_size, sha256_of(path)]
