"""Snapshots: the complete state of a run after an iteration, for an exact resume.

Batches, augmentation and the random numbers of a step are functions of (seed, iteration). So a
snapshot holds only weights, memory, statistics and the optimizer's state. A snapshot is a folder
that is written under a temporary name and renamed. Its `manifest.json` holds the size and SHA-256
of each file, so a damaged snapshot is detected, reported and skipped.
"""

import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor
from torch.optim import Optimizer

from pinmem_core.checkpoints.checkpoint import state_dict_mismatch
from pinmem_core.documents import json_text, read_json_object
from pinmem_core.errors import DataError
from pinmem_core.events import Listener, Notice
from pinmem_core.files import remove_leftovers, staged_folder
from pinmem_core.models import Segmenter
from pinmem_core.renamed import current_tensors

FOLDER = "snapshots"
_NAME = re.compile(r"[0-9]{8,}", re.ASCII)
_WEIGHTS, _OPTIMIZER, _MANIFEST = "model.safetensors", "optimizer.safetensors", "manifest.json"


@dataclass(frozen=True)
class Facts:
    """Metadata of a snapshot.

    Attributes:
        iteration: Number of completed iterations.
        logged: Size of `metrics.jsonl`, in bytes.
        scaler: State of the loss scaler; empty without a scaler.
        processes: Number of training processes.
    """

    iteration: int
    logged: int
    scaler: dict[str, Any]
    processes: int


@dataclass(frozen=True)
class Snapshot:
    """A snapshot on disk.

    Attributes:
        folder: Folder of the snapshot.
        facts: Metadata of the snapshot.
    """

    folder: Path
    facts: Facts

    def restore(self, segmenter: Segmenter, optimizer: Optimizer) -> None:
        """Load the state into a segmenter and its optimizer.

        Raises:
            DataError: The tensors do not fit this segmenter and optimizer.
        """
        weights, buffers = (
            current_tensors(safetensors.torch.load_file(self.folder / name))
            for name in (_WEIGHTS, _OPTIMIZER)
        )
        ours = dict(_buffers(segmenter, optimizer))
        if problem := state_dict_mismatch(weights, segmenter.state_dict()) or state_dict_mismatch(
            buffers, ours
        ):
            raise DataError(
                f"the snapshot {self.folder} does not fit the run's configuration: {problem}.",
                "If you edited the run's config.json, undo this, or start a new run.",
            )
        segmenter.load_state_dict(weights)
        parameters = dict(segmenter.named_parameters())
        for key, value in buffers.items():
            name, _, kind = key.rpartition("/")
            optimizer.state[parameters[name]][kind].copy_(value)


def save_snapshot(
    run: Path, facts: Facts, segmenter: Segmenter, optimizer: Optimizer, keep: int
) -> None:
    """Write a snapshot, and remove all but the `keep` newest snapshots up to it.

    Snapshots of later iterations were damaged when the run was resumed. They stay until the run
    reaches their iteration again.

    Raises:
        MachineError: The disk is full, or the folder cannot be written to.
    """
    weights = {name: _on_cpu(value) for name, value in segmenter.state_dict().items()}
    buffers = dict(_buffers(segmenter, optimizer))
    with staged_folder(run / FOLDER / f"{facts.iteration:08}") as folder:
        safetensors.torch.save_file(weights, folder / _WEIGHTS)
        safetensors.torch.save_file(buffers, folder / _OPTIMIZER)
        files = {name: _fingerprint(folder / name) for name in (_WEIGHTS, _OPTIMIZER)}
        manifest = {**asdict(facts), "files": files}
        (folder / _MANIFEST).write_text(json_text(manifest, indent=2) + "\n", encoding="utf-8")
    for old in [f for f in _folders(run) if int(f.name) <= facts.iteration][:-keep]:
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
            reason = str(error).removesuffix(".")
            on_event(Notice(f"{folder} is damaged and skipped: {reason}", warning=True))
    return None


def _read(folder: Path) -> Snapshot:
    """Return the snapshot in `folder`, or raise an error of any kind if it is damaged."""
    manifest = read_json_object(folder / _MANIFEST)
    files = manifest.pop("files")
    if not isinstance(files, dict) or sorted(files) != sorted((_WEIGHTS, _OPTIMIZER)):
        raise ValueError(f"its {_MANIFEST} does not list the two files of a snapshot")
    for name, fingerprint in files.items():
        if _fingerprint(folder / name) != fingerprint:
            raise ValueError(f"{name} was changed after it was written")
    facts = Facts(**manifest)
    numbers = (facts.iteration, facts.logged, facts.processes)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"its {_MANIFEST} has an invalid number")
    if facts.iteration != int(folder.name) or not isinstance(facts.scaler, dict):
        raise ValueError(f"its {_MANIFEST} belongs to another iteration")
    return Snapshot(folder, facts)


def _folders(run: Path) -> list[Path]:
    """Return the folders of all snapshots, oldest first."""
    folders = [path for path in (run / FOLDER).glob("[0-9]*") if _NAME.fullmatch(path.name)]
    return sorted(folders, key=lambda folder: int(folder.name))


def _buffers(segmenter: Segmenter, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in segmenter.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                yield f"{name}/{kind}", _on_cpu(value)


def _on_cpu(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous()


def _fingerprint(path: Path) -> list[object]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
