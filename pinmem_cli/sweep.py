"""`pinmem train --sweep`: the runs of a study, and its table."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from pinmem_cli.options import shell_join, without
from pinmem_cli.output import Output, errors, exit_code, say, show_error, table
from pinmem_cli.signals import stopping
from pinmem_core.errors import PinMemError, StoppedRunError

if TYPE_CHECKING:
    from pinmem_core.study import Run, StudyResult, StudyTable, Sweep
    from pinmem_core.study.runs import State


def run_or_plan_sweep(
    out: Output,
    file: Path,
    output: Path | None,
    sources: Sequence[str],
    targets: Sequence[str],
    *,
    jobs: int,
    dry_run: bool,
) -> None:
    """Train what a study still lacks and print its table, or show the state of its runs."""
    from pinmem_core.paths import runs_root
    from pinmem_core.study import read_sweep

    sweep = read_sweep(file, sources=sources, targets=targets)
    folder = output or runs_root() / file.stem
    if dry_run:
        _plan(out, sweep, folder)
    else:
        _run(out, sweep, folder, jobs)


def _run(out: Output, sweep: "Sweep", folder: Path, jobs: int) -> None:
    from pinmem_core.study import make_table, states_of, write_study

    states = states_of(sweep, folder)
    if "absent" in states.values() or "begun" in states.values():
        _announce(out, sweep, states, jobs)
    done = _train(out, sweep, folder, states, jobs)
    if done.elsewhere:
        out.note(f"{done.elsewhere} runs are trained by other processes and missing in the table")
    failed = {str(run): error.message for run, error in done.failed.items()}
    try:
        result = make_table(sweep, folder)
    except PinMemError:
        if not done.failed:
            raise
        _fail(done.failed)
    files = write_study(result, folder)
    others = [file.name for file in files if file.suffix != ".md"]
    out.result(
        result.as_json() | {"folder": str(folder), "files": [*map(str, files)], "failed": failed},
        *_tables(result),
        f"protocol: {result.protocol}",
        f"table: {folder / 'study.md'}; also {', '.join(others)}",
    )
    if done.failed:
        _fail(done.failed)
    fold = next(iter(sweep.parts()))
    reports = [
        folder / fold / "runs" / f"{name}-{sweep.seeds[0]}" / "study" for name in sweep.variants
    ]
    if len(reports) > 1 and not done.elsewhere:
        out.next_step(f"pinmem eval compare {shell_join(*reports[:2])}")


def _train(
    out: Output, sweep: "Sweep", folder: Path, states: "Mapping[Run, State]", jobs: int
) -> "StudyResult":
    """Train and score what is missing, or until a signal."""
    from pinmem_cli.study_view import StudyView
    from pinmem_core.study import run_study

    with StudyView(errors(), states, quiet=out.quiet) as view, stopping(out) as stop:
        try:
            return run_study(
                sweep, folder, jobs=jobs, on_event=view.show, on_run=view.show_run, stop=stop
            )
        except StoppedRunError as error:
            stopped = error.message.partition(";")[0]
    say(f"{stopped}. Resume with the same command.")
    raise typer.Exit(stop.exit_code)


def _announce(out: Output, sweep: "Sweep", states: "Mapping[Run, State]", jobs: int) -> None:
    """Say what is trained, and how long it takes if that is more than a minute or so."""
    from pinmem_core.distributed import started_by_torchrun
    from pinmem_core.study import plan_study
    from pinmem_core.training.throughput import duration

    if started_by_torchrun():
        return  # its processes would have to measure together
    with out.listening() as listener:
        plans = plan_study(sweep, only_long=True, on_event=listener)
    left = [run for run, state in states.items() if state != "done"]
    folds = f"{len(plans)} folds x " if len(plans) > 1 else ""
    text = f"study: {folds}{len(sweep.variants)} variants x {len(sweep.seeds)} seeds; "
    text += f"{len(left)} of {len(states)} runs to train or to finish"
    out.note(f"{text}, {jobs} at once" if jobs > 1 else text)
    images = sorted({(plan.images, plan.scored) for plan in plans.values()})
    out.note("; ".join(f"images: {i:,} for training, {s:,} scored by each run" for i, s in images))
    if all(plan.seconds for plan in plans.values()):
        seconds = sum(plans[run.fold].seconds[run.variant] for run in left)
        out.note(f"time: about {duration(seconds)}, one run after the other")


def _fail(failed: "Mapping[Run, PinMemError]") -> None:
    """Show each error once, with its runs, and exit."""
    by_message: dict[str, list[Run]] = {}
    for run, error in failed.items():
        by_message.setdefault(error.message, []).append(run)
    for message, runs in by_message.items():
        show_error(PinMemError(f"{', '.join(map(str, runs))}: {message}", failed[runs[0]].hint))
    raise typer.Exit(exit_code(next(iter(failed.values()))))


def _plan(out: Output, sweep: "Sweep", folder: Path) -> None:
    from pinmem_core.study import plan_study, states_of
    from pinmem_core.training.throughput import duration

    states = states_of(sweep, folder)
    with out.listening() as listener:
        plans = plan_study(sweep, on_event=listener)
    rows = table("variant", "seed", "state", "time", text=["state"])
    runs: list[dict[str, Any]] = []
    for run, state in states.items():
        seconds = plans[run.fold].seconds[run.variant]
        name = f"{run.fold}/{run.variant}".removeprefix("/")
        rows.add_row(name, str(run.seed), state, "" if state == "done" else duration(seconds))
        runs.append({**run._asdict(), "state": state, "seconds": seconds})
    left = [run["seconds"] for run in runs if run["state"] != "done"]
    parts = sweep.parts()
    first = next(iter(plans.values()))
    domains = [
        f"{name + ': ' if name else ''}trained on: {', '.join(part.sources)}; "
        f"scored on: {', '.join(part.scored())}"
        for name, part in parts.items()
    ]
    images = [
        f"{name + ': ' if name else ''}images: {plan.images:,} for training; "
        f"{plan.scored:,} scored by each run"
        for name, plan in plans.items()
    ]
    out.result(
        {
            "title": sweep.title,
            "folder": str(folder),
            "runs": runs,
            "scored": list(dict.fromkeys(d for part in parts.values() for d in part.scored())),
            "images": first.images,
            "images_scored": first.scored,
            "folds": {name: vars(plan) for name, plan in plans.items() if name},
            "seconds": sum(left),
        },
        rows,
        *domains,
        *images,
        f"folder: {folder}; {len(left)} of {len(runs)} runs to train or to finish",
        f"time: about {duration(sum(left))} for these runs, one after the other",
    )
    out.next_step(without("--dry-run"))


def _tables(result: "StudyTable") -> Iterator[Table | str]:
    """Yield the tables of the study and of its folds, each with what it does not show."""
    from pinmem_core.study.writers import notes, variant_cells

    for name, part in {"": result, **result.folds}.items():
        heads, rows = variant_cells(part)
        shown = table(f"{name or result.title}, mIoU %", *heads[1:])
        for variant, cells in zip(part.rows, rows, strict=True):
            shown.add_row(variant, *(cell.replace("`", "") for cell in cells))
        yield shown
        yield from (note.replace("`", "") for note in notes(part))
        yield ""
