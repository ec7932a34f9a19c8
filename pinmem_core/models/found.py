"""Resolve the name of a model to a checkpoint: a folder, a run, or a model on the Hub."""

from pathlib import Path
from typing import Any

from pinmem_core.documents import read_json_object
from pinmem_core.errors import DataError, MachineError
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.home import find_run, home, newest_run
from pinmem_core.models.figures import Figures, seen_in_words
from pinmem_core.models.hub import HubName, fetch

CHECKPOINT = "checkpoint"
"""Name of the checkpoint folder inside a run."""
STARTER = "starter"
"""Name of the model that ships with pinmem."""
STARTER_FOLDER = Path(__file__).parents[1] / "starter"
LAST = "last"
"""Name of the newest finished run, except runs of the demo and of sweeps."""


def checkpoint_of(name: str, *, on_event: Listener = ignore, **options: Any) -> Path:
    """Return the checkpoint folder of a model.

    Args:
        name: Folder or name of a run, folder of a checkpoint, "starter" for the model that ships
            with pinmem, "last" for the newest finished run, or `user/name[@revision]` on the Hub.
            A local folder or run takes precedence over the Hub.
        on_event: Callback for notices: which run "last" is, and that the Hub is asked.
        options: Options of `fetch` for the Hub.

    Raises:
        DataError: No folder, run or model has this name.
        MachineError: The Hub cannot be reached and the model is not in its cache; or the user has
            no home folder.
    """
    try:
        folder = find_run(name)
    except (DataError, MachineError):
        if name == STARTER:
            return STARTER_FOLDER
        if name == LAST:
            run = newest_run()
            on_event(Notice(f"model: {run} (the newest run), {run_summary(run)}"))
            return checkpoint_of(str(run))
        on_hub = HubName.parse(name)
        if on_hub is None:
            raise
        on_event(Notice(f"{name} is not a local folder; asking the Hub"))
        return fetch(on_hub, **options)
    inside = folder / CHECKPOINT
    return inside if inside.is_dir() else folder


def starter_summary() -> str:
    """Return one line with the training data and the scores of the starter model."""
    return (STARTER_FOLDER / "summary.txt").read_text(encoding="utf-8").strip()


def run_summary(run: Path) -> str:
    """Return one line with the mIoU of a finished run, from its `scores.json`."""
    try:
        saved = read_json_object(run / "scores.json")
        domains = Figures.of_run(saved, str(saved["protocol"])).domains
        scores = [
            f"{100 * domain.miou:.1f} % on {domain.name} ({seen_in_words(domain.seen)})"
            for domain in domains
            if domain.miou is not None
        ]
    except (DataError, ValueError, KeyError, TypeError, AttributeError):
        scores = []
    return f"mIoU {', '.join(scores)}" if scores else "mIoU unknown"


def run_folder(checkpoint: Path) -> Path:
    """Return the folder for files that are derived from a checkpoint, such as reports.

    This is the run that contains the checkpoint, or the checkpoint folder itself outside of a run.
    The starter model and models of the Hub use a folder in pinmem's home instead.
    """
    if checkpoint == STARTER_FOLDER:
        return home() / STARTER
    on_hub = HubName.of_cached(checkpoint)
    if on_hub:
        return home() / "hub" / f"{on_hub.repo.replace('/', '--')}@{on_hub.revision}"
    return checkpoint.parent if checkpoint.name == CHECKPOINT else checkpoint
