"""Where pinmem keeps things: archives, raw data, prepared datasets and runs, under one folder.

`PINMEM_HOME` names that folder; without it, the platform's folder for user data is taken.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_data_path

from pinmem_core.errors import BusyError, DataError
from pinmem_core.paths import expanded


def home() -> Path:
    """Return the folder under which pinmem keeps everything, whether it exists or not."""
    chosen = os.environ.get("PINMEM_HOME")
    return expanded(chosen).absolute() if chosen else user_data_path("pinmem")


def dataset_root(name: str) -> Path:
    """Return the folder of the prepared dataset `name`, whether it exists or not."""
    return home() / "datasets" / name


def archives_root(name: str) -> Path:
    """Return the folder of the downloaded archives of the dataset `name`, existing or not."""
    return home() / "archives" / name


def raw_root(name: str) -> Path:
    """Return the folder of what was unpacked for the dataset `name`, existing or not."""
    return home() / "raw" / name


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Keep other processes out of what `name` stands for while the block runs.

    Raises:
        BusyError: Another process is in it.
    """
    path = home() / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=1):
            yield
    except Timeout:
        raise BusyError(
            f"another pinmem is at work on {name}.", "Wait for it, or stop it."
        ) from None


def runs_root() -> Path:
    """Return the folder that runs are kept in where the user names none."""
    return home() / "runs"


def register_run(run: Path, *, part_of: str | None = None) -> None:
    """Remember a finished run, wherever its folder is, so that `newest_run` finds it.

    Args:
        run: Its folder.
        part_of: What the run is a part of, "demo" or "study": `newest_run` never returns it. This
            may be noted before the run begins.
    """
    runs_root().mkdir(parents=True, exist_ok=True)
    with _run_log().open("a", encoding="utf-8") as log:
        part = {"part_of": part_of} if part_of else {}
        log.write(json.dumps({"run": str(run.absolute()), **part}) + "\n")


def newest_run() -> Path:
    """Return the folder of the run that finished last and still exists, and is no part of others.

    Raises:
        DataError: There is none.
    """
    log = _run_log()
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    entries = [json.loads(line) for line in lines]
    parts = {entry["run"] for entry in entries if entry.get("part_of")}
    for entry in reversed(entries):
        run = Path(entry["run"])
        if entry["run"] not in parts and run.is_dir():
            return run
    raise DataError(
        f"there is no trained model in {home()} yet; runs of the demo and of sweeps do not count.",
        "Train one ('pinmem train --sources demo:arcade,demo:toytown'), or name its folder.",
    )


def find_run(name: str) -> Path:
    """Return the folder that `name` means: a path, or the name of a run under `runs_root`.

    Raises:
        DataError: No such folder exists.
    """
    for folder in (expanded(name), runs_root() / name):
        if folder.is_dir():
            return folder
    raise DataError(
        f"there is no run '{name}', neither as a folder nor in {runs_root()}.",
        "Name the folder that 'pinmem train' printed at its end.",
    )


def newest_unfinished_run() -> Path:
    """Return the run under `runs_root` that was begun last and has not ended.

    Raises:
        DataError: There is none.
    """
    begun = [path.parent for path in runs_root().glob("*/config.json")]
    unfinished = [run for run in begun if not (run / "scores.json").exists()]
    if not unfinished:
        raise DataError(
            f"there is no unfinished run in {runs_root()}.",
            "Name the folder of a run that lies elsewhere.",
        )
    return max(unfinished, key=lambda run: (run / "config.json").stat().st_mtime)


def _run_log() -> Path:
    return runs_root() / "finished.jsonl"
