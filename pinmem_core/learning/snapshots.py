"""The whole state of a run after an iteration, so that it goes on as if it had never stopped.

Batches, augmentation and the random numbers of a step are functions of (seed, iteration), so
weights, memory, statistics and the optimizer's buffers are all that has to be kept. A snapshot is a
folder that is written under another name and renamed; its `manifest.json` holds the size and
SHA-256 of each file, by which one that the disk has damaged is told and passed over.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor
from torch.optim import Optimizer

from pinmem_core.events import Listener, Notice
from pinmem_core.files import staged_folder
from pinmem_core.model import Segmenter

FOLDER = "snapshots"
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
        """Bring a segmenter and its optimizer into this state."""
        segmenter.load_state_dict(safetensors.torch.load_file(self.folder / _WEIGHTS))
        parameters = dict(segmenter.named_parameters())
        for key, value in safetensors.torch.load_file(self.folder / _OPTIMIZER).items():
            name, _, kind = key.rpartition("/")
            optimizer.state[parameters[name]][kind].copy_(value)


def save_snapshot(
    run: Path, facts: Facts, segmenter: Segmenter, optimizer: Optimizer, keep: int
) -> None:
    """Write the state of a run, and remove all but the `keep` newest snapshots.

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
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for old in _folders(run)[:-keep]:
        shutil.rmtree(old)


def newest_snapshot(run: Path, on_event: Listener) -> Snapshot | None:
    """Return the newest snapshot of a run that is intact, or None; others are named."""
    for folder in reversed(_folders(run)):
        try:
            return _read(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            on_event(Notice(f"{folder} is damaged and passed over: {error}", warning=True))
    return None


def _read(folder: Path) -> Snapshot:
    """Return the snapshot in `folder`, or raise one of many errors where it is damaged."""
    manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    for name, fingerprint in manifest["files"].items():
        if _fingerprint(folder / name) != fingerprint:
            raise ValueError(f"{name} is not what was written")
    return Snapshot(folder, Facts(**{k: v for k, v in manifest.items() if k != "files"}))


def _folders(run: Path) -> list[Path]:
    """Return the folders of all snapshots, the oldest first."""
    return sorted((run / FOLDER).glob("[0-9]*"))


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
