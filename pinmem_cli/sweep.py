"""`pinmem train --sweep`: a study's runs, and its table."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from pinmem_cli.options import shell_join, without
from pinmem_cli.output import Output, say, table
from pinmem_cli.signals import stopping
from pinmem_core.errors import StoppedRunError

if TYPE_CHECKING:
    from pinmem_core.study import StudyTable


def run_sweep(
    out: Output, file: Path, folder: Path, sources: Sequence[str], targets: Sequence[str]
) -> None:
    """Train what the study still lacks, and print the table of all its reports."""
    from pinmem_core.study import make_table, read_sweep, run_study

    sweep = read_sweep(file, sources=sources, targets=targets)
    with out.listening() as listener, stopping(out) as stop:
        try:
            elsewhere = run_study(sweep, folder, on_event=listener, stop=stop)
        except StoppedRunError as error:
            say(f"{error.message.partition(';')[0]}; the same command goes on.")
            raise typer.Exit(stop.exit_code) from None
    if elsewhere:
        out.note(f"{elsewhere} runs are being trained by other processes; the table lacks them")
    found = make_table(sweep, folder)
    out.result(
        found.as_json() | {"folder": str(folder)},
        _shown(found),
        f"protocol: {found.protocol}",
        f"table: {folder / 'study.md'} and study.json",
    )
    reports = [folder / "runs" / f"{name}-{sweep.seeds[0]}" / "study" for name in sweep.variants]
    if len(reports) > 1 and not elsewhere:
        out.next_step(f"pinmem eval compare {shell_join(*reports[:2])}")


def plan_sweep(
    out: Output, file: Path, folder: Path, sources: Sequence[str], targets: Sequence[str]
) -> None:
    """Show which runs of the study there are and in what state; train nothing."""
    from pinmem_core.study import read_sweep, states_of

    sweep = read_sweep(file, sources=sources, targets=targets)
    states = states_of(sweep, folder)
    rows = table("variant", "seed", "state", text=["state"])
    for (variant, seed), state in states.items():
        rows.add_row(variant, str(seed), state)
    missing = sum(state != "done" for state in states.values())
    runs = [{"variant": name, "seed": seed, "state": states[name, seed]} for name, seed in states]
    scored = list(sweep.scored())
    out.result(
        {"title": sweep.title, "folder": str(folder), "runs": runs, "scored": scored},
        rows,
        f"trained on: {', '.join(sweep.sources)}; scored on: {', '.join(scored)}",
        f"folder: {folder}; {missing} of {len(runs)} runs to train or to end",
    )
    out.next_step(without("--dry-run"))


def _shown(found: "StudyTable") -> Table:
    targets = list(next(iter(found.rows.values())).targets)
    heads = [head for target in targets for head in (target, "difference", "interval")]
    rows = table(f"{found.title}, mIoU %", "seeds", "sources, val", *heads)
    for name, row in found.rows.items():
        cells = [str(len(row.seeds)), row.source.as_text()]
        for target in targets:
            difference = row.differences.get(target)
            cells.append(row.targets[target].as_text())
            if difference is None:
                cells += ["", ""]
            else:
                low, high = difference.interval
                cells.append(difference.points.as_text("+"))
                cells.append(f"{100 * low:+.1f} to {100 * high:+.1f}")
        rows.add_row(name, *cells)
    return rows
