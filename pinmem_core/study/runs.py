"""The runs of a study: their states, and their training one after the other or at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.distributed import started_by_torchrun
from pinmem_core.documents import read_json_object
from pinmem_core.errors import ConfigError, DataError, PinMemError, StoppedRunError
from pinmem_core.events import Event, Listener, Notice, ignore
from pinmem_core.study.plan import configs_of
from pinmem_core.study.processes import Queue, run_at_once
from pinmem_core.study.run import RunEvent, complete
from pinmem_core.study.sweep import Run, Sweep, report_path, run_path, settings_path
from pinmem_core.training.setup import load_data

State = Literal["done", "begun", "absent"]


@dataclass(frozen=True)
class StudyResult:
    """Result of `run_study`.

    Attributes:
        elsewhere: Number of runs that were left to other processes.
        failed: Errors of the runs that failed.
    """

    elsewhere: int
    failed: dict[Run, PinMemError]


def states_of(sweep: Sweep, folder: Path) -> dict[Run, State]:
    """Return the state of each run, without changing the folder.

    Raises:
        ConfigError: The folder holds a run that was made with other settings.
    """
    states: dict[Run, State] = {}
    for fold, part in sweep.parts().items():
        for variant, seed in part.runs():
            _refuse_other_settings(part, folder / fold, variant, seed)
            begun = run_path(folder / fold, variant, seed).exists()
            done = report_path(folder / fold, variant, seed).exists()
            states[Run(fold, variant, seed)] = "done" if done else "begun" if begun else "absent"
    return states


def _refuse_other_settings(sweep: Sweep, folder: Path, variant: str, seed: int) -> None:
    """Raise ConfigError if a run has other settings, so that a table never mixes them."""
    run = run_path(folder, variant, seed)
    if not run.exists():
        return
    wanted = sweep.settings_of(variant, seed)
    try:
        recorded = read_json_object(settings_path(folder, variant, seed))
    except DataError:
        recorded = {}
    differing = sorted(key for key in wanted if recorded.get(key) != wanted[key])
    if differing:
        raise ConfigError(
            f"{run} was made with other settings: {', '.join(differing)}.",
            "Choose another folder, or remove this run.",
        )


def run_study(
    sweep: Sweep,
    folder: Path,
    *,
    jobs: int = 1,
    on_event: Listener = ignore,
    on_run: Callable[[RunEvent], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> StudyResult:
    """Train and score all runs without a report, and resume those that were started.

    A run that another process is training is skipped. A run that fails does not stop the others.

    Args:
        sweep: Variants and seeds to compare.
        folder: Folder of the study; it is created if necessary.
        jobs: Number of runs at once. Each of several runs has a process of its own and an equal
            share of the threads, and uses one of the GPUs.
        on_event: Callback for progress events.
        on_run: Callback for the events of the runs; by default, `on_event` gets them.
        stop: Function that is called after each iteration, as in `train`.

    Raises:
        ConfigError: The folder holds a run that was made with other settings, or a target is one of
            the sources and the setting `allow_seen_targets` is not set, or variants would be scored
            in different classes, or torchrun started this process and `jobs` is not 1.
        StoppedRunError: `stop` returned True; the runs are saved.
    """
    if jobs > 1 and started_by_torchrun():
        raise ConfigError("torchrun trains one run at a time.", "Leave out '--jobs', or torchrun.")
    states = states_of(sweep, folder)
    for part in sweep.parts().values():
        prepare_synthetic([*part.sources, *part.targets], on_event)
        first = next(iter(configs_of(part).values()))
        load_data(first.model_copy(update={"targets": part.targets}), ignore)  # refuses seen ones
    emit = _numbered([*states], on_event, on_run)
    queue = Queue(sweep, [run for run, state in states.items() if state != "done"], emit)
    if jobs > 1:
        run_at_once(queue, folder, jobs, stop)
    else:
        while run := queue.start():
            result = complete(sweep, folder, run, emit, stop)
            queue.end(run, result)
            if isinstance(result, StoppedRunError):
                raise result
    failed = {run: error for run, error in queue.ended.items() if isinstance(error, PinMemError)}
    return StudyResult(list(queue.ended.values()).count("elsewhere"), failed)


def _numbered(
    runs: Sequence[Run], on_event: Listener, on_run: Callable[[RunEvent], None] | None
) -> Callable[[RunEvent], None]:
    """Return a listener of the runs that also announces each run with its number."""

    def emit(event: RunEvent) -> None:
        run = event.run
        if event.event == "started":
            fold = f", {run.fold}" if run.fold else ""
            place = f"run {runs.index(run) + 1} of {len(runs)}"
            on_event(Notice(f"{place}: {run.variant}, seed {run.seed}{fold}"))
        if on_run:
            on_run(event)
        elif isinstance(event.event, Event):
            on_event(event.event)

    return emit
