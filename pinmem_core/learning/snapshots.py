"""The whole state of a run after an iteration, so that it goes on as if it had never stopped.

Batches, augmentation and the random numbers of a step are functions of (seed, iteration), so
weights, memory, statistics and the optimizer's buffers are all that has to be kept. A snapshot is a
folder that is written under another name and renamed; its `manifest.json` holds the size and
SHA-256 of each file, by which one that the disk has damaged is found, named and passed over.
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

from pinmem_core.documents import json_text, read_json_object
from pinmem_core.errors import DataError
from pinmem_core.events import Listener, Notice
from pinmem_core.files import remove_leftovers, staged_folder
from pinmem_core.model import Segmenter
from pinmem_core.model.misfit import misfit

FOLDER = "snapshots"
_NAME = re.compile(r"[0-9]{8,}", re.ASCII)
_WEIGHTS, _OPTIMIZER, _MANIFEST = "model.safetensors", "optimizer.safetensors", "manifest.json"


@dataclass(frozen=True)
class Facts:
    """What is told of a snapshot beside its tensors.

    Attributes:
        iteration: Number of iterations done.
        logged: Bytes that `metrics.jsonl` had.
        scaler: State of the loss scaler; empty where none is at work.
        processes: That trained together.
    """

    iteration: int
    logged: int
    scaler: dict[str, Any]
    processes: int


@dataclass(frozen=True)
class Snapshot:
    """A run's state on disk.

    Attributes:
        folder: Holds it.
        facts: About it.
    """

    folder: Path
    facts: Facts

    def restore(self, segmenter: Segmenter, optimizer: Optimizer) -> None:
        """Bring a segmenter and its optimizer into this state.

        Raises:
            DataError: The tensors are not those of this segmenter and optimizer.
        """
        weights = safetensors.torch.load_file(self.folder / _WEIGHTS)
        buffers = safetensors.torch.load_file(self.folder / _OPTIMIZER)
        ours = dict(_buffers(segmenter, optimizer))
        if problem := misfit(weights, segmenter.state_dict()) or misfit(buffers, ours):
            raise DataError(
                f"the snapshot {self.folder} does not fit the run's configuration: {problem}.",
                "Was the run's config.json edited? Begin a new run to train another network.",
            )
        segmenter.load_state_dict(weights)
        parameters = dict(segmenter.named_parameters())
        for key, value in buffers.items():
            name, _, kind = key.rpartition("/")
            optimizer.state[parameters[name]][kind].copy_(value)


def save_snapshot(
    run: Path, facts: Facts, segmenter: Segmenter, optimizer: Optimizer, keep: int
) -> None:
    """Write the state of a run, and remove all but the `keep` newest snapshots up to it.

    Later ones that are there could not be read when the run was resumed. They stay until the run
    gets there again.

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
    """Remove what killed processes left of snapshots; bring back one that was being replaced."""
    for path in (run / FOLDER).glob(".*"):
        remove_leftovers(path.with_name(path.name.split(".")[1]))


def newest_snapshot(run: Path, on_event: Listener) -> Snapshot | None:
    """Return the newest snapshot of a run that is intact, or None; others are named."""
    for folder in reversed(_folders(run)):
        try:
            return _read(folder)
        except (OSError, ValueError, KeyError, TypeError, DataError) as error:
            reason = str(error).removesuffix(".")
            on_event(Notice(f"{folder} is damaged and passed over: {reason}", warning=True))
    return None


def _read(folder: Path) -> Snapshot:
    """Return the snapshot in `folder`, or raise one of many errors where it is damaged."""
    manifest = read_json_object(folder / _MANIFEST)
    files = manifest.pop("files")
    if not isinstance(files, dict) or sorted(files) != sorted((_WEIGHTS, _OPTIMIZER)):
        raise ValueError(f"its {_MANIFEST} does not list the two files of a snapshot")
    for name, fingerprint in files.items():
        if _fingerprint(folder / name) != fingerprint:
            raise ValueError(f"{name} is not what was written")
    facts = Facts(**manifest)
    numbers = (facts.iteration, facts.logged, facts.processes)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"a number in its {_MANIFEST} is wrong")
    if facts.iteration != int(folder.name) or not isinstance(facts.scaler, dict):
        raise ValueError(f"its {_MANIFEST} is that of another iteration")
    return Snapshot(folder, facts)


def _folders(run: Path) -> list[Path]:
    """Return the folders of all snapshots, the oldest first."""
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
