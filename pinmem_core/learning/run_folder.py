"""What a run keeps in its folder. Every rank reads; the first alone writes."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pinmem_core.config import TrainConfig
from pinmem_core.errors import ConfigError, DataError, MachineError
from pinmem_core.evaluation import Scores
from pinmem_core.evaluation.trained_on import RECORD
from pinmem_core.events import Listener
from pinmem_core.files import write_whole
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
        return self.path / CHECKPOINT

    def require_unused(self) -> None:
        """Raise ConfigError unless the folder is absent or empty."""
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise ConfigError(f"{self.path} exists already.", "Choose another '--output'.")

    def read_config(self) -> TrainConfig:
        """Return the configuration of a run that was begun and has not ended.

        Raises:
            ConfigError: It has ended.
            DataError: The folder holds no run.
        """
        if (self.path / _SCORES).exists():
            raise ConfigError(
                f"{self.path} has ended already.", f"'pinmem eval {self.path}' scores it."
            )
        try:
            return TrainConfig.model_validate_json((self.path / _CONFIG).read_bytes())
        except (OSError, ValueError) as error:
            reason = "there is none" if isinstance(error, OSError) else "it is damaged"
            raise DataError(
                f"{self.path} is no run: its {_CONFIG} cannot be read ({reason})."
            ) from None

    def begin(self, config: TrainConfig, samples: Mapping[str, Any]) -> None:
        """Write down what is going to be trained, and on exactly which samples."""
        self._write_json(_CONFIG, config.model_dump(mode="json"))
        self._write_json(_SAMPLES, samples)
        if self.writes:
            (self.path / _METRICS).unlink(missing_ok=True)

    def require_same(self, samples: Mapping[str, Any]) -> None:
        """Raise DataError unless `samples` are those that the run began with."""
        if json.loads((self.path / _SAMPLES).read_text(encoding="utf-8")) != samples:
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
            with (self.path / _METRICS).open("a", encoding="utf-8") as log:
                log.write(json.dumps({"iteration": iteration, **values}) + "\n")
        except OSError as error:
            raise MachineError(f"cannot write {self.path / _METRICS}: {error.strerror}.") from error

    def metrics(self) -> list[dict[str, float]]:
        """Return the lines of the metrics."""
        path = self.path / _METRICS
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

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
            for half_written in (self.path / snapshots.FOLDER).glob(".*"):
                shutil.rmtree(half_written)
        return snapshots.newest_snapshot(self.path, on_event)

    def go_back_to(self, snapshot: snapshots.Snapshot) -> None:
        """Forget what was logged after a snapshot."""
        metrics = self.path / _METRICS
        if self.writes and metrics.exists():
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

    def remove_unless_begun(self) -> bool:
        """Remove a folder without any checkpoint; return whether it had none."""
        if self.checkpoint.exists():
            return False
        if self.writes:
            shutil.rmtree(self.path, ignore_errors=True)
        return True

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        if self.writes:
            write_whole(self.path / name, (json.dumps(content, indent=2) + "\n").encode())
