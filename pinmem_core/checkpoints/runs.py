"""The runs on this machine: their states, scores and ages."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pinmem_core.checkpoints.hub import CHECKPOINT
from pinmem_core.checkpoints.model_card import DomainMetrics, ModelMetrics
from pinmem_core.documents import read_json_object
from pinmem_core.errors import DataError
from pinmem_core.locks import is_locked
from pinmem_core.paths import part_by_sources, registered_runs, runs_root

State = Literal["finished", "running", "unfinished", "damaged"]
_MALFORMED = (DataError, KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class RunInfo:
    """One run.

    Attributes:
        folder: Folder of the run.
        state: "running" if a process trains it now; "damaged" if its configuration, its scores or
            its checkpoint cannot be read.
        iteration: Number of saved iterations.
        iterations: Number of all iterations; None for a damaged configuration.
        method: Training method; None for a damaged configuration.
        sources: Domains that it is trained on.
        classes: Name of its label space; None for the 19 classes of Cityscapes, unless they were
            chosen.
        part_of: "demo" or "study" for a run of an experiment, else None.
        scores: Scores of a finished run, the targets first.
        parameters: Numbers of trained and of all parameters; empty for an unfinished run.
        changed: Time of the last change, in seconds since 1970.
    """

    folder: Path
    state: State
    iteration: int
    iterations: int | None
    method: str | None
    sources: tuple[str, ...]
    classes: str | None
    part_of: str | None
    scores: tuple[DomainMetrics, ...]
    parameters: Mapping[str, int]
    changed: float

    @property
    def name(self) -> str:
        """Name by which commands find the run: that of its folder, or its path."""
        return self.folder.name if self.folder.parent == runs_root() else str(self.folder)

    @property
    def domain(self) -> str:
        """A domain with samples to score: the first that was scored, else a source as a whole."""
        source = self.sources[0].partition("@")[0]
        return self.scores[0].name if self.scores else f"{source}@all"

    def as_json(self) -> dict[str, Any]:
        """Return the run as a JSON object; the mIoU is in 0..1."""
        scores = [
            {
                "domain": of.name,
                "seen": of.seen,
                "miou": of.miou,
                "images": of.images,
                "label_space": of.label_space,
            }
            for of in self.scores
        ]
        return {**vars(self), "name": self.name, "folder": str(self.folder), "scores": scores}


def list_runs() -> list[RunInfo]:
    """Return all runs below `PINMEM_HOME`, and finished runs elsewhere, the newest first."""
    known = registered_runs()
    local = [path for path in runs_root().glob("*") if _is_run(path)]
    folders = {**dict.fromkeys(local), **known}
    runs = [read_run(folder, folders[folder]) for folder in folders if _is_run(folder)]
    return sorted(runs, key=lambda run: run.changed, reverse=True)


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("config.json", CHECKPOINT, "snapshots"))


def read_run(folder: Path, part_of: str | None = None) -> RunInfo:
    """Return the state of a run.

    Args:
        folder: Folder of the run.
        part_of: "demo" or "study" if it is registered as part of an experiment.
    """
    config: Mapping[str, Any] = {}
    scores: tuple[DomainMetrics, ...] = ()
    parameters: Mapping[str, int] = {}
    classes: str | None = None
    finished = (folder / "scores.json").exists()
    try:
        config = read_json_object(folder / "config.json")
        iterations = int(config["iterations"])
        sources = tuple(map(str, config["sources"]))
        space = config.get("model", {}).get("label_space", {})
        classes = config.get("classes") or space.get("name")
        if finished:
            scores = ModelMetrics.of_run(read_json_object(folder / "scores.json"), "").domains
            saved = read_json_object(folder / CHECKPOINT / "config.json", 1 << 28)
            parameters = saved.get("parameters", {})
    except _MALFORMED:
        state: State = "damaged"
        iterations, sources = None, ()
    else:
        running = not finished and is_locked(folder / ".lock")
        state = "finished" if finished else "running" if running else "unfinished"
    return RunInfo(
        folder,
        state,
        iterations if finished and iterations else _saved_iterations(folder),
        iterations,
        config.get("method"),
        sources,
        classes,
        part_of or part_by_sources(folder),
        scores,
        parameters,
        max(path.stat().st_mtime for path in (folder, *folder.glob("*.json*"))),
    )


def _saved_iterations(folder: Path) -> int:
    """Return the iteration of the newest snapshot; 0 if there is none."""
    numbers = [path.name for path in (folder / "snapshots").glob("[0-9]*")]
    return max((int(name) for name in numbers if name.isdecimal()), default=0)
