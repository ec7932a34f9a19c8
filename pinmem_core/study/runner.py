"""Training and scoring the missing runs of a study; several processes can share a study."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pinmem_core.checkpoints.hub import CHECKPOINT
from pinmem_core.config import TrainConfig
from pinmem_core.documents import json_text, read_json_object
from pinmem_core.errors import BusyError, ConfigError, DataError
from pinmem_core.evaluation.report import DATA, evaluate_run
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.files import write_whole
from pinmem_core.home import register_run
from pinmem_core.locks import locked
from pinmem_core.models import Segmenter, load_checkpoint, save_checkpoint
from pinmem_core.study.sweep import Sweep
from pinmem_core.training import resume, train
from pinmem_core.training.resolve import resolve


def report_path(folder: Path, variant: str, seed: int) -> Path:
    """Return the path of a run's report."""
    return run_path(folder, variant, seed) / "study" / DATA


def settings_path(folder: Path, variant: str, seed: int) -> Path:
    """Return the path of the file that records a run's settings."""
    return folder / "settings" / f"{variant}-{seed}.json"


def lock_path(folder: Path, variant: str, seed: int) -> Path:
    """Return the path of the lock for training and scoring a run."""
    return folder / "settings" / f".{variant}-{seed}.lock"


def _refuse_other_settings(sweep: Sweep, folder: Path, variant: str, seed: int) -> None:
    """Raise ConfigError if a run has other settings, so that a table never mixes them."""
    run = run_path(folder, variant, seed)
    if not run.exists():
        return
    wanted = sweep.settings_of(variant, seed)
    try:
        found = read_json_object(settings_path(folder, variant, seed))
    except DataError:
        found = {}
    differing = sorted(key for key in wanted if found.get(key) != wanted[key])
    if differing:
        raise ConfigError(
            f"{run} was made with other settings: {', '.join(differing)}.",
            "Choose another folder, or remove this run.",
        )


def run_path(folder: Path, variant: str, seed: int) -> Path:
    """Return the folder of a run."""
    return folder / "runs" / f"{variant}-{seed}"


def states_of(
    sweep: Sweep, folder: Path
) -> dict[tuple[str, int], Literal["done", "begun", "absent"]]:
    """Return the state of each run by variant and seed, without changing the folder.

    Raises:
        ConfigError: The folder holds a run that was made with other settings.
    """
    states: dict[tuple[str, int], Literal["done", "begun", "absent"]] = {}
    for variant, seed in sweep.runs():
        _refuse_other_settings(sweep, folder, variant, seed)
        if report_path(folder, variant, seed).exists():
            states[variant, seed] = "done"
        else:
            begun = run_path(folder, variant, seed).exists()
            states[variant, seed] = "begun" if begun else "absent"
    return states


def run_study(
    sweep: Sweep,
    folder: Path,
    *,
    on_event: Listener = ignore,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Train and score all runs without a report, and resume those that were started.

    A run that another process is training is skipped.

    Args:
        sweep: Variants and seeds to compare.
        folder: Folder of the study; it is created if necessary.
        on_event: Callback for progress events.
        stop: Function that is called after each iteration, as in `train`.

    Returns:
        Number of runs that were left to other processes.

    Raises:
        ConfigError: The folder holds a run that was made with other settings.
        PinMemError: `train`, `resume` or `evaluate_run` failed; finished runs are kept.
        StoppedRunError: `stop` returned True.
    """
    runs, elsewhere = list(sweep.runs()), 0
    for variant, seed in runs:
        _refuse_other_settings(sweep, folder, variant, seed)
    for number, (variant, seed) in enumerate(runs, start=1):
        if report_path(folder, variant, seed).exists():
            continue
        try:
            with locked(lock_path(folder, variant, seed), f"run {variant}-{seed}", on_event):
                if report_path(folder, variant, seed).exists():
                    continue  # another process has just finished it
                on_event(Notice(f"run {number} of {len(runs)}: {variant}, seed {seed}"))
                _complete(sweep, folder, variant, seed, on_event, stop)
        except BusyError:
            elsewhere += 1
    return elsewhere


def _complete(
    sweep: Sweep,
    folder: Path,
    variant: str,
    seed: int,
    on_event: Listener,
    stop: Callable[[], bool],
) -> None:
    run, trained = run_path(folder, variant, seed), sweep.variants[variant].of
    noted = settings_path(folder, variant, seed)
    noted.parent.mkdir(parents=True, exist_ok=True)
    write_whole(noted, json_text(sweep.settings_of(variant, seed), indent=1).encode())
    if trained:
        _adopt(run_path(folder, trained, seed), run, sweep.config(variant, seed))
    elif not (run / "scores.json").exists():
        register_run(run, part_of="study")
        if (run / "config.json").exists():
            resume(run, on_event=on_event, stop=stop)
        else:
            train(sweep.config(variant, seed), run, on_event=on_event, stop=stop)
    report = evaluate_run(str(run), sweep.scored(), protocol=sweep.protocol, on_event=on_event)
    path = report_path(folder, variant, seed)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, report.as_text().encode())


def _adopt(trained: Path, run: Path, config: TrainConfig) -> None:
    """Create a run from the network of another run, with the architecture settings of `config`.

    Raises:
        BusyError: The other run is not finished.
        ConfigError: The weights of the other run do not fit the network of `config`.
    """
    if not (trained / "scores.json").exists():
        raise BusyError(f"another process is training {trained}.")
    segmenter, _ = load_checkpoint(trained / CHECKPOINT)
    changed = Segmenter(resolve(config).model)
    try:
        changed.load_state_dict(segmenter.state_dict())
    except RuntimeError:
        raise ConfigError(
            f"{run.name} cannot use the network of {trained.name}: the weights do not fit.",
            "Remove the settings that change the architecture.",
        ) from None
    save_checkpoint(changed, run / CHECKPOINT, segmenter.about)
