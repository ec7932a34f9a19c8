"""What a run keeps in its folder. Every rank reads; the first alone writes."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pinmem_core.config import TrainConfig
from pinmem_core.documents import LARGEST, json_text, read_json, read_json_lines, read_json_object
from pinmem_core.errors import ConfigError, DataError, MachineError, quoted
from pinmem_core.evaluation import Scores
from pinmem_core.evaluation.trained_on import RECORD
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.files import (
    append_line,
    is_partial,
    remove_leftovers,
    remove_partial_files,
    restore_folder,
    write_whole,
)
from pinmem_core.images import write_png
from pinmem_core.inference import PROTOCOLS
from pinmem_core.learning import snapshots
from pinmem_core.learning.iteration import Iteration
from pinmem_core.learning.pictures import plot_losses, plot_memory
from pinmem_core.model import Segmenter, save_checkpoint
from pinmem_core.model.checkpoint import write_card
from pinmem_core.model.figures import Figures
from pinmem_core.model.found import CHECKPOINT
from pinmem_core.ranks import rank, world_size

_CONFIG, _SAMPLES, _METRICS, _SCORES = "config.json", "samples.json", "metrics.jsonl", "scores.json"
DIGESTS = "digests"
"""Key of `samples.json` for a digest of each dataset's labels; runs of older versions lack it."""
_MANY_SAMPLES = 16 * LARGEST
"""Bytes that the list of all samples may have."""


class RunFolder:
    """Reads and writes a run's files.

    Args:
        path: The folder, existing or not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writes = rank() == 0
        self.trained_on: Mapping[str, Any] = {}
        """What checkpoints record of the images that they were trained on."""

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint, once there is one."""
        return restore_folder(self.path / CHECKPOINT)

    @property
    def lock(self) -> Path:
        """The lock file: in the folder, since several homes and machines may share it."""
        return self.path / ".lock"

    def require_unused(self) -> None:
        """Raise ConfigError unless the folder is absent, or holds no file but of a killed start."""
        if self.path.exists() and not (
            self.path.is_dir()
            and all(path == self.lock or is_partial(path) for path in self.path.iterdir())
        ):
            raise ConfigError(f"{self.path} exists already.", "Choose another '--output'.")

    def read_config(self) -> TrainConfig:
        """Return the configuration of a run that was begun and has not ended.

        Raises:
            ConfigError: It has ended.
            DataError: The folder holds no run.
        """
        if (self.path / _SCORES).exists():
            raise ConfigError(
                f"{self.path} has ended already.", f"'pinmem eval {quoted(self.path)}' scores it."
            )
        path = self.path / _CONFIG
        if not path.exists():
            raise DataError(f"{self.path} is no run: there is no {_CONFIG}.")
        try:
            return TrainConfig.model_validate(read_json_object(path))
        except (DataError, ValidationError):
            raise DataError(
                f"{self.path} cannot be resumed: its {_CONFIG} is damaged.",
                "Copy it from a backup, or begin a new run.",
            ) from None

    def begin(self, config: TrainConfig, samples: Mapping[str, Any]) -> None:
        """Write down what is going to be trained, and on exactly which samples."""
        if self.writes:
            remove_partial_files(self.path)
        self._write_json(_CONFIG, config.model_dump(mode="json"))
        self._write_json(_SAMPLES, samples)
        if self.writes:
            (self.path / _METRICS).unlink(missing_ok=True)

    def require_same(self, samples: Mapping[str, Any], on_event: Listener) -> None:
        """Raise DataError unless `samples` are those that the run began with.

        A file that cannot be read is written anew, with a warning.
        """
        path = self.path / _SAMPLES
        try:
            began_with = read_json(path, _MANY_SAMPLES)
        except DataError as error:
            hint = "the samples cannot be compared with those that the run began with"
            on_event(Notice(f"{error.message.removesuffix('.')}; {hint}", warning=True))
            self._write_json(_SAMPLES, samples)
            return
        if began_with not in (samples, {k: v for k, v in samples.items() if k != DIGESTS}):
            raise DataError(
                f"the samples are not those that {self.path} began with ({_SAMPLES}).",
                "Prepare the datasets as they were, or begin a new run.",
            )

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Add a line to the metrics.

        Raises:
            MachineError: The disk is full.
        """
        if not self.writes:
            return
        try:
            append_line(self.path / _METRICS, json_text({"iteration": iteration, **values}))
        except OSError as error:
            raise MachineError(f"cannot write {self.path / _METRICS}: {error.strerror}.") from error

    def metrics(self) -> list[dict[str, float]]:
        """Return the lines of the metrics."""
        return list(read_json_lines(self.path / _METRICS, _figures, ignore))

    def save(self, done: int, step: Iteration) -> None:
        """Save all that is needed to go on after `done` iterations, and a checkpoint to use.

        Raises:
            MachineError: The disk is full, or the folder cannot be written to.
        """
        if not self.writes:
            return
        metrics = self.path / _METRICS
        facts = snapshots.Facts(
            iteration=done,
            logged=metrics.stat().st_size if metrics.exists() else 0,
            scaler=step.scaler.state_dict(),
            processes=world_size(),
        )
        keep = step.config.checkpoint.keep
        snapshots.save_snapshot(self.path, facts, step.segmenter, step.optimizer, keep)
        self.save_checkpoint(done, step)

    def save_checkpoint(self, done: int, step: Iteration) -> None:
        """Save the network of `done` iterations for others to use.

        Raises:
            MachineError: The disk is full, or the folder cannot be written to.
        """
        if self.writes:
            training = step.config.model_dump(mode="json")
            if step.config.init_weights:  # where they lay is nobody's business
                training["init_weights"] = Path(step.config.init_weights).name
            about = {"training": training, "iteration": done, RECORD: self.trained_on}
            save_checkpoint(step.segmenter, self.checkpoint, about)

    def newest_snapshot(self, on_event: Listener) -> snapshots.Snapshot | None:
        """Return the newest snapshot that is intact, or None; others are named."""
        if self.writes:
            remove_partial_files(self.path)
            remove_leftovers(self.checkpoint)
            snapshots.remove_half_written(self.path)
        return snapshots.newest_snapshot(self.path, on_event)

    def go_back_to(self, snapshot: snapshots.Snapshot) -> None:
        """Forget what was logged after a snapshot."""
        metrics = self.path / _METRICS
        if self.writes and metrics.exists() and metrics.stat().st_size > snapshot.facts.logged:
            os.truncate(metrics, snapshot.facts.logged)

    def finish(
        self,
        scores: Mapping[str, Mapping[str, Scores]],
        protocol: str,
        seen: Mapping[str, bool | None],
    ) -> None:
        """Write the scores, by which a run is known to have ended, and the checkpoint's card."""
        text = {
            phase: {name: {"seen": seen[name], **asdict(of)} for name, of in by.items()}
            for phase, by in scores.items()
        }
        if self.writes:
            how = f"{protocol}: {PROTOCOLS[protocol].describe()}"
            write_card(self.checkpoint, Figures.of_run(text, how))
        self._write_json(_SCORES, {"protocol": protocol, **text})

    def draw(self, segmenter: Segmenter) -> None:
        """Draw how the losses went, and the memory's cosines."""
        if not self.writes:
            return
        if lines := self.metrics():
            write_png(self.path / "losses.png", plot_losses(lines, self.path.name))
        if segmenter.memory is not None:
            slots = segmenter.memory.slots.detach().float().cpu().numpy()
            write_png(self.path / "memory.png", plot_memory(slots, self.path.name))

    def is_saved(self) -> bool:
        """Return whether there is anything from which the run could go on, or a checkpoint."""
        return self.checkpoint.exists() or any((self.path / snapshots.FOLDER).glob("*"))

    def remove_unless_saved(self) -> None:
        """Remove the folder of a run that has just begun, unless something is saved in it."""
        if self.writes and not self.is_saved():
            shutil.rmtree(self.path, ignore_errors=True)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        if self.writes:
            write_whole(self.path / name, (json_text(content, indent=2) + "\n").encode())


def _figures(line: dict[str, Any]) -> dict[str, float]:
    """Return a line of the metrics, or raise TypeError or KeyError where it is none."""
    if type(line["iteration"]) is not int or not all(
        value is None or isinstance(value, int | float) for value in line.values()
    ):
        raise TypeError("this is not a line of figures")
    return {name: value for name, value in line.items() if value is not None}
