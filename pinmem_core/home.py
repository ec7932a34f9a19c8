"""Folders of pinmem under one home folder: archives, raw data, prepared datasets and runs.

The environment variable `PINMEM_HOME` sets the home folder. The default is the platform's folder
for user data.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

from platformdirs import user_data_path

from pinmem_core.documents import read_json_lines
from pinmem_core.errors import DataError, MachineError
from pinmem_core.events import ignore
from pinmem_core.files import append_line, restore_folder
from pinmem_core.paths import expanded


def home() -> Path:
    """Return the home folder of pinmem, which may not exist yet.

    Raises:
        MachineError: `PINMEM_HOME` is not set and the user has no home folder.
    """
    if chosen := os.environ.get("PINMEM_HOME"):
        return expanded(chosen).absolute()
    with suppress(RuntimeError):
        folder = user_data_path("pinmem")
        if folder.is_absolute():  # older versions of platformdirs do not expand "~"
            return folder
    raise MachineError("this user has no home folder.", "Set PINMEM_HOME to a folder.")


def dataset_root(name: str) -> Path:
    """Return the folder of the prepared dataset `name`, which may not exist."""
    return restore_folder(home() / "datasets" / name)


def archives_root(name: str) -> Path:
    """Return the folder of the downloaded archives of the dataset `name`, which may not exist."""
    return home() / "archives" / name


def raw_root(name: str) -> Path:
    """Return the folder of the unpacked files of the dataset `name`, which may not exist."""
    return home() / "raw" / name


def runs_root() -> Path:
    """Return the default folder of runs."""
    return home() / "runs"


def register_run(run: Path, *, part_of: str | None = None) -> None:
    """Register a finished run in any folder, so that `newest_run` finds it.

    Args:
        run: Folder of the run.
        part_of: "demo" or "study" for a run of an experiment, which `newest_run` never returns. It
            may be registered before it starts.
    """
    runs_root().mkdir(parents=True, exist_ok=True)
    part = {"part_of": part_of} if part_of else {}
    append_line(_run_log(), json.dumps({"run": str(run.absolute()), **part}))


def newest_run() -> Path:
    """Return the folder of the last finished run that still exists, without demo and study runs.

    Raises:
        DataError: There is no such run.
    """
    entries = list(
        read_json_lines(_run_log(), lambda line: (Path(line["run"]), line.get("part_of")), ignore)
    )
    parts = {run for run, part_of in entries if part_of}
    for run, _ in reversed(entries):
        if run not in parts and run.is_dir():
            return run
    raise DataError(
        f"there is no trained model in {home()} yet; runs of the demo and of sweeps do not count.",
        "Train one ('pinmem train --sources demo:arcade,demo:toytown'), or name its folder.",
    )


def find_run(name: str) -> Path:
    """Return the folder of a run by its path or by its name under `runs_root`.

    Raises:
        DataError: The folder does not exist.
        MachineError: The path does not exist, and the user has no home folder.
    """
    for place in (Path, runs_root):  # an existing path needs no home folder
        folder = restore_folder(place() / expanded(name))
        if folder.is_dir():
            return folder
    raise DataError(
        f"there is no run '{name}', neither as a folder nor in {runs_root()}.",
        "Name the folder that 'pinmem train' printed at its end.",
    )


def newest_unfinished_run() -> Path:
    """Return the unfinished run under `runs_root` that started last.

    Raises:
        DataError: There is no unfinished run.
    """
    begun = [path.parent for path in runs_root().glob("*/config.json")]
    unfinished = [run for run in begun if not (run / "scores.json").exists()]
    if not unfinished:
        raise DataError(
            f"there is no unfinished run in {runs_root()}.",
            "Give the folder of a run in another place.",
        )
    return max(unfinished, key=lambda run: (run / "config.json").stat().st_mtime)


def _run_log() -> Path:
    return runs_root() / "finished.jsonl"
