"""Finding the checkpoint that a name means: a folder, a run, or a model on the Hub."""

from pathlib import Path
from typing import Any

from pinmem_core.documents import read_json_object
from pinmem_core.errors import DataError, MachineError
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.home import find_run, home, newest_run
from pinmem_core.model.figures import Figures, seen_in_words
from pinmem_core.model.hub import HubName, fetch

CHECKPOINT = "checkpoint"
"""Folder of the checkpoint inside a run."""
STARTER = "starter"
"""Name of the model that comes with pinmem."""
STARTER_FOLDER = Path(__file__).parents[1] / "starter"
LAST = "last"
"""Name of the newest finished run that is neither of the demo nor of a sweep."""


def checkpoint_of(name: str, *, on_event: Listener = ignore, **options: Any) -> Path:
    """Return the checkpoint folder that a name means.

    Args:
        name: A run's folder or name, a checkpoint folder, "starter" for the model that comes with
            pinmem, "last" for the newest finished run, or `user/name[@revision]` on the Hub. What
            exists on this machine comes first.
        on_event: Callback for the events; it receives what "last" is, and that the Hub is asked.
        options: For the Hub, as `fetch` has them.

    Raises:
        DataError: There is neither such a folder nor such a model.
        MachineError: The Hub cannot be reached, and the model is not in its cache; or the user has
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
        on_event(Notice(f"no folder is called {name}; asking the Hub"))
        return fetch(on_hub, **options)
    inside = folder / CHECKPOINT
    return inside if inside.is_dir() else folder


def starter_summary() -> str:
    """Return in a line what the starter model was trained on, and how good it is."""
    return (STARTER_FOLDER / "summary.txt").read_text(encoding="utf-8").strip()


def run_summary(run: Path) -> str:
    """Return in a line the mIoU of a finished run, by what its `scores.json` holds."""
    try:
        saved = read_json_object(run / "scores.json")
        found = Figures.of_run(saved, str(saved["protocol"])).domains
        scores = [
            f"{100 * of.miou:.1f} % on {of.name} ({seen_in_words(of.seen)})"
            for of in found
            if of.miou is not None
        ]
    except (DataError, ValueError, KeyError, TypeError, AttributeError):
        scores = []
    return f"mIoU {', '.join(scores)}" if scores else "whose mIoU is not known"


def run_folder(checkpoint: Path) -> Path:
    """Return where what is made of a checkpoint is kept.

    That is the run that it lies in, the folder itself where it is in none, and for the starter
    model and those of the Hub, whose places are not for that, a folder in pinmem's home.
    """
    if checkpoint == STARTER_FOLDER:
        return home() / STARTER
    on_hub = HubName.of_cached(checkpoint)
    if on_hub:
        return home() / "hub" / f"{on_hub.repo.replace('/', '--')}@{on_hub.revision}"
    return checkpoint.parent if checkpoint.name == CHECKPOINT else checkpoint
