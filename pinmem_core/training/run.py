"""A training run, from a configuration to a checkpoint and its scores."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from pinmem_core.config import TrainConfig
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.devices import compiling_explained
from pinmem_core.distributed import on_first_rank, process_group, rank
from pinmem_core.errors import MachineError, StoppedRunError, shell_join
from pinmem_core.evaluation import Scores
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.locks import hold_lock
from pinmem_core.paths import register_run
from pinmem_core.training.run_folder import RunFolder
from pinmem_core.training.setup import resolve, with_classes
from pinmem_core.training.trainer import Trainer

_training = Lock()


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes:
        run: Folder of the run.
        checkpoint: Folder of the last checkpoint, inside the run.
        iterations: Number of training iterations.
        scores: Scores by phase ("source", "target") and domain.
        seen: Whether the network was trained on a domain, by domain; None where this is not known.
        parameters: Numbers of "trained" and "total" parameters.
    """

    run: Path
    checkpoint: Path
    iterations: int
    scores: dict[str, dict[str, Scores]]
    seen: dict[str, bool | None]
    parameters: dict[str, int]


def train(
    config: TrainConfig,
    run: Path,
    *,
    on_event: Listener = ignore,
    stop: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Train a segmenter, and score it on the sources' validation splits and on the targets.

    The run folder contains `config.json`, `samples.json` (the samples used), `metrics.jsonl` (one
    line per logged iteration), `snapshots/` (for `resume`), `checkpoint/`, `scores.json` and
    plots of the losses and the memory. On a CPU all of these are functions of the configuration and
    the data. If training fails before its first snapshot, the run folder is removed. Processes that
    `torchrun` starts train one network together.

    Args:
        config: Configuration of the run.
        run: Folder to create. With several processes, the folder of the first one is used.
        on_event: Callback for progress events and metrics; only the first process calls it.
        stop: Function that is called after each iteration. If it returns True, the run saves its
            state and stops.

    Raises:
        ConfigError: The configuration contradicts itself, or the run folder is not empty.
        DataError: A source or target is missing, empty or damaged.
        MachineError: The device is not available, torch cannot compile the network, or another
            thread of this process is training.
        StoppedRunError: `stop` returned True.
    """
    config = resolve(config)
    with process_group():
        on_event = on_event if rank() == 0 else ignore
        folder = RunFolder(on_first_rank(lambda: run))
        on_first_rank(folder.require_unused)
        on_first_rank(lambda: prepare_synthetic([*config.sources, *config.targets], on_event))
        config = on_first_rank(lambda: with_classes(config, on_event))
        with _alone_in(folder, on_event):
            on_first_rank(folder.require_unused)  # another process may have created it
            try:
                return _complete(Trainer(config, folder, on_event, stop))
            except BaseException:
                folder.remove_unless_saved()
                raise


def resume(
    run: Path, *, on_event: Listener = ignore, stop: Callable[[], bool] = lambda: False
) -> RunResult:
    """Resume a run that was stopped or killed; on a CPU the result equals an uninterrupted run.

    Args:
        run: Folder of the run.
        on_event: Callback for progress events and metrics, as in `train`.
        stop: Function that is called after each iteration, as in `train`.

    Raises:
        ConfigError: The run is finished.
        DataError: The folder does not hold a run, or the samples have changed since its start.
        MachineError: The device is not available, another process is training the run, or another
            thread of this one is training.
        StoppedRunError: `stop` returned True.
    """
    with process_group():
        on_event = on_event if rank() == 0 else ignore
        folder = RunFolder(on_first_rank(lambda: run))
        config = folder.read_config()
        with _alone_in(folder, on_event):
            snapshot = folder.newest_snapshot(on_event)
            done = snapshot.meta.iteration if snapshot else 0
            on_event(Notice(f"resuming at iteration {done}/{config.iterations}"))
            return _complete(Trainer(config, folder, on_event, stop, snapshot))


@contextmanager
def _alone_in(folder: RunFolder, on_event: Listener) -> Iterator[None]:
    """Lock the folder of a run; the first of several processes holds the lock for all.

    A thread of this process cannot train at the same time: both would draw from torch's global
    random generator, and neither result could be repeated.
    """
    if not _training.acquire(blocking=False):
        raise MachineError("this process trains another run.", "Train each run in its own process.")
    try:
        lock = hold_lock(folder.lock, f"the run {folder.path}", on_event)
        with lock if folder.writes else nullcontext():
            yield
    finally:
        _training.release()


def _complete(trainer: Trainer) -> RunResult:
    """Run to the end; after a failure, say how to resume from the last snapshot."""
    folder, on_event = trainer.folder, trainer.on_event
    try:
        with trainer, compiling_explained():
            scores = trainer.run()
    except BaseException as error:
        if folder.is_saved() and not isinstance(error, StoppedRunError):
            hint = (
                f"'pinmem train --resume {shell_join(folder.path)}' goes on from the last snapshot"
            )
            on_event(Notice(hint, warning=True))
        raise
    if folder.writes:
        try:
            register_run(folder.path)
        except OSError as error:
            on_event(Notice(f"the run cannot be recorded as the newest: {error}", warning=True))
    return RunResult(
        folder.path,
        folder.checkpoint,
        trainer.last,
        scores,
        trainer.seen,
        trainer.step.segmenter.count_parameters(),
    )
