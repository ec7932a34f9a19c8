"""The files in a run's folder. All processes read them; only the first one writes."""

import csv
import io
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pinmem_core.checkpoints.base_weights import Base
from pinmem_core.checkpoints.checkpoint import write_card
from pinmem_core.checkpoints.hub import CHECKPOINT, is_local_path, model_name
from pinmem_core.checkpoints.model_card import (
    INIT_FROM,
    TIME_IS_OVER,
    WEIGHTS_LICENCE,
    ModelMetrics,
)
from pinmem_core.config import TrainConfig
from pinmem_core.distributed import rank, world_size
from pinmem_core.documents import (
    MAX_BYTES,
    json_bytes,
    json_text,
    read_json,
    read_json_lines,
    read_json_object,
)
from pinmem_core.errors import ConfigError, DataError, MachineError, shell_join
from pinmem_core.evaluation import ConfusionMatrix, Scores
from pinmem_core.evaluation.plots import plot_confusion, plot_cosines
from pinmem_core.evaluation.trained_on import RECORD
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.files import (
    append_line,
    is_partial,
    remove_leftovers,
    remove_partial_files,
    restore_folder,
    write_atomic,
)
from pinmem_core.images import write_png
from pinmem_core.inference import PROTOCOLS
from pinmem_core.label_space import LabelSpace
from pinmem_core.models import Segmenter, save_checkpoint
from pinmem_core.paths import as_portable_name
from pinmem_core.plots import plot_class_iou, plot_losses, write_plot
from pinmem_core.renamed import current_settings
from pinmem_core.sharding import gathered
from pinmem_core.training import snapshots
from pinmem_core.training.fine_tuning import InitialModel
from pinmem_core.training.optim import optimizer_state
from pinmem_core.training.step import TrainStep

_CONFIG, _SAMPLES, _METRICS, _SCORES = "config.json", "samples.json", "metrics.jsonl", "scores.json"
_START = "initial_model.json"
CACHE = "features"
"""Folder of cached features."""
DIGESTS = "digests"
"""Key of `samples.json` for a digest of each dataset's labels; runs of older versions lack it."""
CLASSES = "classes"
"""Key of `samples.json` for the network's class of each class of a source; it came later still."""
_MANY_SAMPLES = 16 * MAX_BYTES
"""Maximum size of the list of all samples, in bytes."""


class RunFolder:
    """Read and write the files of a run.

    Args:
        path: Folder of the run; it does not have to exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writes = rank() == 0
        self.trained_on: Mapping[str, Any] = {}
        """Record of the training images for checkpoints."""
        self.start: InitialModel | None = None
        """Model that the run starts from."""
        self.base: Base | None = None
        """Base weights that checkpoints name instead of holding them."""
        self.parameters: Mapping[str, int] = {}
        """Numbers of trained and of all parameters."""
        self.weights_licence: str | None = None
        """Licence of the pretrained weights; None if unknown."""

    @property
    def checkpoint(self) -> Path:
        """Folder of the last checkpoint."""
        return restore_folder(self.path / CHECKPOINT)

    @property
    def lock(self) -> Path:
        """Lock file, inside the folder because several homes and machines may share the folder."""
        return self.path / ".lock"

    def require_unused(self) -> None:
        """Raise ConfigError unless the folder is absent or holds only files of a killed start."""
        if self.path.exists() and not (
            self.path.is_dir()
            and all(path == self.lock or is_partial(path) for path in self.path.iterdir())
        ):
            raise ConfigError(f"{self.path} exists already.", "Choose another '--output'.")

    def read_config(self) -> TrainConfig:
        """Return the configuration of an unfinished run.

        Raises:
            ConfigError: The run is finished.
            DataError: The folder does not hold a run, or its configuration is damaged.
        """
        if (self.path / _SCORES).exists():
            raise ConfigError(
                f"the run {self.path} is already finished.",
                f"Score it with: pinmem eval {shell_join(self.path)}",
            )
        path = self.path / _CONFIG
        if not path.exists():
            raise DataError(f"{self.path} is not a run: {_CONFIG} is missing.")
        try:
            return TrainConfig.model_validate(current_settings(read_json_object(path)))
        except (DataError, ValidationError):
            raise DataError(
                f"{self.path} cannot be resumed: its {_CONFIG} is damaged.",
                "Restore it from a backup, or start a new run.",
            ) from None

    def read_start(self) -> InitialModel | None:
        """Return the record of the model that the run started from; None if there is none.

        Raises:
            DataError: The record is damaged.
        """
        path = self.path / _START
        if not path.exists():
            return None
        try:
            return InitialModel.model_validate(read_json_object(path))
        except (DataError, ValidationError):
            raise DataError(
                f"{self.path} cannot be resumed: its {_START} is damaged.",
                "Restore it from a backup, or start a new run.",
            ) from None

    def begin(self, config: TrainConfig, samples: Mapping[str, Any]) -> None:
        """Write the configuration of the run, its list of samples, and its initial model."""
        if self.writes:
            remove_partial_files(self.path)
        self._write_json(_CONFIG, config.model_dump(mode="json"))
        self._write_json(_SAMPLES, samples)
        if self.start:
            self._write_json(_START, self.start.model_dump(mode="json"))
        if self.writes:
            (self.path / _METRICS).unlink(missing_ok=True)

    def require_same(self, samples: Mapping[str, Any], on_event: Listener) -> None:
        """Raise DataError unless `samples` are those at the start of the run.

        If the list of samples cannot be read, write it again with a warning.
        """
        path = self.path / _SAMPLES
        try:
            initial = read_json(path, _MANY_SAMPLES)
        except DataError as error:
            hint = "cannot check that the samples are those at the start of the run"
            on_event(Notice(f"{error.message.removesuffix('.')}; {hint}", warning=True))
            self._write_json(_SAMPLES, samples)
            return
        known = initial if isinstance(initial, dict) else {}
        newer = {CLASSES, DIGESTS} - known.keys()
        expected = {key: value for key, value in samples.items() if key not in newer}
        if initial != expected:
            if known == {**expected, CLASSES: known.get(CLASSES)}:
                raise DataError(
                    "the cards assign other classes of the network to those of the sources than at "
                    f"the start of the run ({self.path / _SAMPLES}, '{CLASSES}').",
                    "Prepare the datasets with the cards as before, or start a new run.",
                )
            raise DataError(
                f"the samples differ from those at the start of the run ({self.path / _SAMPLES}).",
                "Prepare the datasets as before, or start a new run.",
            )

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Append a line to the metrics.

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
        return list(read_json_lines(self.path / _METRICS, _metrics_line, ignore))

    def save(self, done: int, step: TrainStep) -> None:
        """Save a snapshot to resume from after `done` iterations; every process must call this.

        Raises:
            MachineError: The disk is full, or the folder cannot be written to.
        """
        states = {k: gathered(state, keep=self.writes) for k, state in step.states().items()}
        if not self.writes:
            return
        metrics = self.path / _METRICS
        meta = snapshots.SnapshotMeta(
            iteration=done,
            logged=metrics.stat().st_size if metrics.exists() else 0,
            scaler=step.scaler.state_dict(),
            processes=world_size(),
            optimizer=optimizer_state(step.optimizer, step.segmenter)[1],
            settings=snapshots.training_settings(step.config),
        )
        snapshots.save_snapshot(self.path, meta, states, step.config.checkpoint.keep)

    def save_checkpoint(
        self, done: int, config: TrainConfig, segmenter: Segmenter, *, time_is_over: bool = False
    ) -> None:
        """Save the network after `done` iterations as a checkpoint.

        Args:
            done: Number of completed iterations.
            config: Configuration of the run.
            segmenter: Network to save.
            time_is_over: Whether the limit of time makes this iteration the last one.

        Raises:
            MachineError: The disk is full, or the folder cannot be written to.
        """
        if self.writes:
            about = {"training": shareable(config), "iteration": done, RECORD: self.trained_on}
            about["parameters"] = self.parameters
            if time_is_over:
                about[TIME_IS_OVER] = True
            if self.start:
                about[INIT_FROM] = self.start.model_dump(
                    mode="json", exclude={"trained_on", WEIGHTS_LICENCE}
                )
            licence = self.start.weights_licence if self.start else self.weights_licence
            if licence:
                about[WEIGHTS_LICENCE] = licence
            save_checkpoint(segmenter, self.checkpoint, about, base=self.base)

    def newest_snapshot(self, on_event: Listener) -> snapshots.Snapshot | None:
        """Return the newest intact snapshot, or None; warn about damaged ones."""
        if self.writes:
            remove_partial_files(self.path)
            remove_leftovers(self.checkpoint)
            snapshots.remove_half_written(self.path)
        return snapshots.newest_snapshot(self.path, on_event)

    def go_back_to(self, snapshot: snapshots.Snapshot) -> None:
        """Remove metrics that were logged after a snapshot."""
        metrics = self.path / _METRICS
        if self.writes and metrics.exists() and metrics.stat().st_size > snapshot.meta.logged:
            os.truncate(metrics, snapshot.meta.logged)

    def finish(
        self,
        scores: Mapping[str, Mapping[str, Scores]],
        protocol: str,
        seen: Mapping[str, bool | None],
    ) -> None:
        """Write the scores, which mark a run as finished, and the card of the checkpoint."""
        text = {
            phase: {name: {"seen": seen[name], **asdict(of)} for name, of in by.items()}
            for phase, by in scores.items()
        }
        if self.writes:
            how = f"{protocol}: {PROTOCOLS[protocol].describe()}"
            write_card(self.checkpoint, ModelMetrics.of_run(text, how))
        self._write_json(_SCORES, {"protocol": protocol, **text})

    def draw(self, segmenter: Segmenter) -> None:
        """Plot the losses, the IoU by class, and the cosines of the memory."""
        if not self.writes:
            return
        if lines := self.metrics():
            write_plot(self.path / "losses.png", plot_losses(lines, self.path.name))
            if classes := plot_class_iou(lines, self.path.name):
                write_plot(self.path / "classes.png", classes)
        if segmenter.memory is not None:
            slots = segmenter.memory.slots.detach().float().cpu().numpy()
            plot = plot_cosines(slots, self.path.name, segmenter.label_space)
            write_plot(self.path / "memory.png", plot)

    def draw_confusion(
        self, domain: str, iteration: int, matrix: ConfusionMatrix, space: LabelSpace
    ) -> None:
        """Plot the confusion matrix of a domain as `confusion/DOMAIN.png`."""
        if self.writes:
            note = f"{self.path.name}: validation at iteration {iteration:,}"
            figure = plot_confusion(matrix, domain, note, space)
            write_plot(self.path / "confusion" / f"{as_portable_name(domain)}.png", figure)

    def write_results(self) -> None:
        """Write the metrics as `results.csv`: a line for each of theirs, a column for each name."""
        if self.writes:
            lines, file = self.metrics(), io.StringIO()
            names = dict.fromkeys(name for line in lines for name in line)
            table = csv.DictWriter(file, [*names], lineterminator="\n")
            table.writeheader()
            table.writerows(lines)
            write_atomic(self.path / "results.csv", file.getvalue().encode())

    def write_predictions(self, sheets: Mapping[str, NDArray[np.uint8]]) -> None:
        """Write pictures of predictions, RGB (H, W, 3), as `predictions/DOMAIN.png`."""
        for domain, sheet in sheets.items() if self.writes else ():
            write_png(self.path / "predictions" / f"{as_portable_name(domain)}.png", sheet)

    def remove_cache(self) -> None:
        """Remove the cached features, which a finished run does not need."""
        if self.writes:
            shutil.rmtree(self.path / CACHE, ignore_errors=True)

    def has_begun(self) -> bool:
        """Return whether the folder holds the configuration of a run."""
        return (self.path / _CONFIG).exists()

    def is_saved(self) -> bool:
        """Return whether the folder holds a snapshot or a checkpoint."""
        return self.checkpoint.exists() or any((self.path / snapshots.FOLDER).glob("*"))

    def remove_unless_saved(self) -> None:
        """Remove the folder of the run, unless it holds a snapshot or a checkpoint."""
        if self.writes and not self.is_saved():
            shutil.rmtree(self.path, ignore_errors=True)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        if self.writes:
            write_atomic(self.path / name, json_bytes(content))


def shareable(config: TrainConfig) -> dict[str, Any]:
    """Return a configuration as JSON data without local paths."""
    settings = config.model_dump(mode="json")
    if config.init_weights:
        settings["init_weights"] = Path(config.init_weights).name
    if config.init_from and Path(config.init_from).is_absolute():
        settings["init_from"] = model_name(Path(config.init_from))
    settings["method_config"] = {
        key: model_name(Path(value)) if isinstance(value, str) and _is_path(value) else value
        for key, value in settings["method_config"].items()
    }
    return settings


def _is_path(value: str) -> bool:
    return "/" in value and is_local_path(value)


def _metrics_line(line: dict[str, Any]) -> dict[str, float]:
    """Return a line of the metrics, or raise TypeError or KeyError if it is invalid."""
    if type(line["iteration"]) is not int or not all(
        value is None or isinstance(value, int | float) for value in line.values()
    ):
        raise TypeError("this is not a line of metrics")
    return {name: value for name, value in line.items() if value is not None}
