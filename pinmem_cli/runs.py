"""`pinmem runs`: list the runs on this machine."""

import time
from typing import TYPE_CHECKING

from pinmem_cli.options import Json, Quiet, shell_join
from pinmem_cli.output import Output, table
from pinmem_core.templates import percent

if TYPE_CHECKING:
    from pinmem_core.checkpoints.runs import RunInfo

EXAMPLES = ("pinmem runs", "pinmem runs --json")


def runs(json: Json = False, quiet: Quiet = False) -> None:
    """List the runs: state, method, sources, mIoU, and age; the newest first."""
    from pinmem_core.checkpoints.runs import list_runs

    output, listed = Output(as_json=json, quiet=quiet), list_runs()
    text = "state", "method", "sources"
    rows = table("run", *text, "unseen", "seen", "age", text=text)
    for run in listed:
        sources = f"{', '.join(run.sources)}{f' ({run.classes})' if run.classes else ''}"
        name = f"{run.name} ({run.part_of})" if run.part_of else run.name
        scores = (_mean(run, seen=seen) for seen in (False, True))
        rows.add_row(name, _state(run), run.method or "-", sources, *scores, _age(run.changed))
    shown = (rows, "unseen, seen: mean mIoU % over those domains") if listed else ("no runs",)
    output.result({"runs": [run.as_json() for run in listed]}, *shown)
    output.next_step(_next(listed))


def _next(listed: list["RunInfo"]) -> str:
    """Return the command for the newest run that is not damaged."""
    run = next((run for run in listed if run.state in ("finished", "unfinished")), None)
    if run is None:
        return "pinmem train --recipe demo"
    if run.state == "unfinished":
        return f"pinmem train --resume {shell_join(run.name)}"
    unscored = not any(score.seen is False for score in run.scores)
    targets = f" --targets {shell_join(run.domain)}" if unscored else ""
    return f"pinmem eval {shell_join(run.name)}{targets}"


def _state(run: "RunInfo") -> str:
    if run.state in ("running", "unfinished"):
        return f"{run.state}, iteration {run.iteration} of {run.iterations}"
    return run.state


def _mean(run: "RunInfo", *, seen: bool) -> str:
    """Return the mean mIoU of the unseen or the seen domains; one for each label space."""
    mious: dict[str, list[float]] = {}
    for of in run.scores:
        if of.seen is seen and of.miou is not None:
            mious.setdefault(of.label_space, []).append(of.miou)
    means = {space: percent(sum(of) / len(of)) for space, of in mious.items()}
    if len(means) > 1:
        return ", ".join(f"{mean} ({space})" for space, mean in means.items())
    return next(iter(means.values()), "-")


def _age(changed: float) -> str:
    seconds = max(0, time.time() - changed)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"
