"""One run of a study: its training, its scores and its cost."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from pinmem_core.checkpoints.hub import CHECKPOINT
from pinmem_core.config import TrainConfig
from pinmem_core.devices import pick_device
from pinmem_core.documents import json_text, read_json_object
from pinmem_core.errors import BusyError, ConfigError, DataError, PinMemError, StoppedRunError
from pinmem_core.evaluation.report import evaluate_run
from pinmem_core.events import Event, Listener, Progress, Speed
from pinmem_core.files import write_atomic
from pinmem_core.locks import hold_lock
from pinmem_core.models import Segmenter, load_checkpoint, save_checkpoint
from pinmem_core.paths import register_run
from pinmem_core.study.sweep import Run, Sweep, lock_path, report_path, run_path, settings_path
from pinmem_core.training import resume, train
from pinmem_core.training.setup import resolve

Result = Literal["done", "elsewhere"] | PinMemError
"""How a run ended: with a report, at another process, or with an error."""


@dataclass(frozen=True)
class RunEvent:
    """An event of one run of a study.

    Attributes:
        run: The run.
        event: "started", an event of its training or scoring, or how it ended.
    """

    run: Run
    event: Literal["started"] | Event | Result


class Cost(BaseModel):
    """Cost of one run, by its own events."""

    model_config = ConfigDict(frozen=True)

    seconds_per_iteration: float
    """Median over the iterations."""
    memory_bytes: int | None
    """Peak memory of the GPU, or else of the process; None if the process trained other runs."""
    device: str
    """Type of the device."""
    jobs: int
    """Number of runs at once."""


def cost_path(folder: Path, variant: str, seed: int) -> Path:
    """Return the path of the file that records a run's cost."""
    return run_path(folder, variant, seed) / "study" / "cost.json"


def read_cost(folder: Path, variant: str, seed: int) -> Cost | None:
    """Return the recorded cost of a run; None if it is unknown."""
    try:
        return Cost.model_validate(read_json_object(cost_path(folder, variant, seed)))
    except (DataError, ValidationError):
        return None


def complete(
    sweep: Sweep,
    folder: Path,
    run: Run,
    emit: Callable[[RunEvent], None],
    stop: Callable[[], bool],
    jobs: int = 1,
) -> Result:
    """Train, or resume, and score one run; return how it ended.

    Args:
        sweep: The study.
        folder: Folder of the study.
        run: The run.
        emit: Callback for the events of the run.
        stop: Function that is called after each iteration, as in `train`.
        jobs: Number of runs at once; if there are several, this process trains only one of them.
    """
    part, place = sweep.parts()[run.fold], folder / run.fold
    name = f"{run.variant}-{run.seed}"

    def on_event(event: Event) -> None:
        emit(RunEvent(run, event))

    try:
        with hold_lock(lock_path(place, run.variant, run.seed), f"run {name}", on_event):
            if not report_path(place, run.variant, run.seed).exists():
                _complete(part, place, run, on_event, stop, jobs)
    except BusyError:
        return "elsewhere"
    except PinMemError as error:
        return error
    except Exception as error:
        trace = place / "settings" / f"{name}.error.txt"
        write_atomic(trace, traceback.format_exc().encode())
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return PinMemError(text, f"{trace} shows where it happened.")
    return "done"


def _complete(
    sweep: Sweep,
    folder: Path,
    run: Run,
    on_event: Listener,
    stop: Callable[[], bool],
    jobs: int,
) -> None:
    place, config = run_path(folder, run.variant, run.seed), sweep.config(run.variant, run.seed)
    noted = settings_path(folder, run.variant, run.seed)
    noted.parent.mkdir(parents=True, exist_ok=True)
    settings = sweep.settings_of(run.variant, run.seed)
    write_atomic(noted, json_text(settings, indent=1).encode())
    costs = _Costs(config, on_event, jobs)
    if trained := sweep.variants[run.variant].of:
        _adopt(run_path(folder, trained, run.seed), place, config)
    elif not (place / "scores.json").exists():
        register_run(place, part_of="study")
        if (place / "config.json").exists():
            resume(place, on_event=costs, stop=stop)
        else:
            train(config, place, on_event=costs, stop=stop)

    def unless_stopped(event: Event) -> None:
        on_event(event)
        if stop():
            raise StoppedRunError("stopped at the scores; the checkpoint is saved.")

    scored = sweep.scored()
    report = evaluate_run(str(place), scored, protocol=sweep.protocol, on_event=unless_stopped)
    path = report_path(folder, run.variant, run.seed)
    path.parent.mkdir(exist_ok=True)
    if cost := costs.cost():
        write_atomic(cost_path(folder, run.variant, run.seed), cost.model_dump_json().encode())
    write_atomic(path, report.as_text().encode())


class _Costs:
    """Forward the events of a run, and keep its times and memory."""

    def __init__(self, config: TrainConfig, on_event: Listener, jobs: int) -> None:
        self.device = pick_device(config.device)
        self.on_event = on_event
        self.jobs = jobs
        self.times: list[float] = []
        self.memory: list[int] = []
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress) and event.task == "training":
            self.times.append(time.perf_counter())
        elif isinstance(event, Speed):
            self.memory.append(event.memory_bytes)
        self.on_event(event)

    def cost(self) -> Cost | None:
        """Return the cost; None for fewer than two iterations."""
        if len(self.times) < 2:
            return None
        seconds = median(later - earlier for earlier, later in pairwise(self.times))
        known = self.jobs > 1 or self.device.type == "cuda"
        memory = (known and max(self.memory, default=0)) or None
        return Cost(
            seconds_per_iteration=seconds,
            memory_bytes=memory,
            device=self.device.type,
            jobs=self.jobs,
        )


def _adopt(trained: Path, run: Path, config: TrainConfig) -> None:
    """Create a run from the network of another run, with the architecture settings of `config`.

    Raises:
        BusyError: The other run is not finished.
        ConfigError: The weights of the other run do not fit the network of `config`.
    """
    if not (trained / "scores.json").exists():
        raise BusyError(f"another process is training {trained}.")
    segmenter, _ = load_checkpoint(trained / CHECKPOINT)
    space = {"label_space": segmenter.label_space}
    changed = Segmenter(resolve(config).model.model_copy(update=space))
    try:
        changed.load_state_dict(segmenter.state_dict())
    except RuntimeError:
        raise ConfigError(
            f"{run.name} cannot use the network of {trained.name}: the weights do not fit.",
            "Remove the settings that change the architecture.",
        ) from None
    save_checkpoint(changed, run / CHECKPOINT, segmenter.about)
