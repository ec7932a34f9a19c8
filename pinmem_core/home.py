"""Where pinmem keeps things: archives, raw data, prepared datasets and runs, under one folder.

`PINMEM_HOME` names that folder; without it, the platform's folder for user data is taken.
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
    """Return the folder under which pinmem keeps everything, whether it exists or not.

    Raises:
        MachineError: The user has no home folder, as in many containers.
    """
    if chosen := os.environ.get("PINMEM_HOME"):
        return expanded(chosen).absolute()
    with suppress(RuntimeError):
        folder = user_data_path("pinmem")
        if folder.is_absolute():  # older versions of platformdirs leave the "~" as it is
            return folder
    raise MachineError(
        "this user has no home folder to keep data in.", "Set PINMEM_HOME to a folder."
    )


def dataset_root(name: str) -> Path:
    """Return the folder of the prepared dataset `name`, whether it exists or not."""
    return restore_folder(home() / "datasets" / name)


def archives_root(name: str) -> Path:
    """Return the folder of the downloaded archives of the dataset `name`, existing or not."""
    return home() / "archives" / name


def raw_root(name: str) -> Path:
    """Return the folder of what was unpacked for the dataset `name`, existing or not."""
    return home() / "raw" / name


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
    part = {"part_of": part_of} if part_of else {}
    append_line(_run_log(), json.dumps({"run": str(run.absolute()), **part}))


def newest_run() -> Path:
    """Return the folder of the run that finished last and still exists, and is no part of others.

    Raises:
        DataError: There is none.
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
    """Return the folder that `name` means: a path, or the name of a run under `runs_root`.

    Raises:
        DataError: No such folder exists.
        MachineError: There is no such path, and the user has no home folder.
    """
    for place in (Path, runs_root):  # where the first has it, no home is needed
        folder = restore_folder(place() / expanded(name))
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
