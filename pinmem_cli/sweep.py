"""`pinmem train --sweep`: the runs of a study, and its table."""

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
    from pinmem_core.study import StudyTable, Sweep


def run_or_plan_sweep(
    out: Output,
    file: Path,
    output: Path | None,
    sources: Sequence[str],
    targets: Sequence[str],
    *,
    dry_run: bool,
) -> None:
    """Train what a study still lacks and print its table, or show the state of its runs."""
    from pinmem_core.paths import runs_root
    from pinmem_core.study import read_sweep

    sweep = read_sweep(file, sources=sources, targets=targets)
    (_plan if dry_run else _run)(out, sweep, output or runs_root() / file.stem)


def _run(out: Output, sweep: "Sweep", folder: Path) -> None:
    from pinmem_core.study import make_table, run_study

    with out.listening() as listener, stopping(out) as stop:
        try:
            elsewhere = run_study(sweep, folder, on_event=listener, stop=stop)
        except StoppedRunError as error:
            say(f"{error.message.partition(';')[0]}. Resume with the same command.")
            raise typer.Exit(stop.exit_code) from None
    if elsewhere:
        out.note(f"{elsewhere} runs are trained by other processes and missing in the table")
    result = make_table(sweep, folder)
    out.result(
        result.as_json() | {"folder": str(folder)},
        _table(result),
        f"protocol: {result.protocol}",
        f"table: {folder / 'study.md'} and study.json",
    )
    reports = [folder / "runs" / f"{name}-{sweep.seeds[0]}" / "study" for name in sweep.variants]
    if len(reports) > 1 and not elsewhere:
        out.next_step(f"pinmem eval compare {shell_join(*reports[:2])}")


def _plan(out: Output, sweep: "Sweep", folder: Path) -> None:
    from pinmem_core.study import plan_study, states_of
    from pinmem_core.training.throughput import duration

    states = states_of(sweep, folder)
    with out.listening() as listener:
        planned = plan_study(sweep, on_event=listener)
    rows = table("variant", "seed", "state", "time", text=["state"])
    for (variant, seed), state in states.items():
        time = "" if state == "done" else duration(planned.seconds[variant])
        rows.add_row(variant, str(seed), state, time)
    left = [variant for (variant, _), state in states.items() if state != "done"]
    missing, seconds = len(left), sum(planned.seconds[variant] for variant in left)
    runs = [
        {"variant": name, "seed": seed, "state": state, "seconds": planned.seconds[name]}
        for (name, seed), state in states.items()
    ]
    scored = list(sweep.scored())
    out.result(
        {
            "title": sweep.title,
            "folder": str(folder),
            "runs": runs,
            "scored": scored,
            "images": planned.images,
            "images_scored": planned.scored,
            "seconds": seconds,
        },
        rows,
        f"trained on: {', '.join(sweep.sources)}; scored on: {', '.join(scored)}",
        f"images: {planned.images:,} for training; {planned.scored:,} scored by each run",
        f"folder: {folder}; {missing} of {len(runs)} runs to train or to finish",
        f"time: about {duration(seconds)} for these runs, one after the other",
    )
    out.next_step(without("--dry-run"))


def _table(result: "StudyTable") -> Table:
    targets = list(next(iter(result.rows.values())).targets)
    heads = [head for target in result.heads for head in (target, "difference", "interval")]
    rows = table(f"{result.title}, mIoU %", "seeds", "sources, val", *heads)
    for name, row in result.rows.items():
        cells = [str(len(row.seeds)), row.source.as_text()]
        for target in targets:
            difference = row.differences.get(target)
            cells.append(row.targets[target].as_text())
            if difference is None:
                cells += ["", ""]
            else:
                low, high = difference.interval
                cells.append(difference.as_text("+"))
                cells.append(f"{100 * low:+.1f} to {100 * high:+.1f}")
        rows.add_row(name, *cells)
    return rows
