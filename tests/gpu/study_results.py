"""What a study on one device has got so far: as JSON, and as Markdown."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from study_run import journal_path, unfinished_path

from pinmem_core.errors import DataError
from pinmem_core.study import StudyTable, Sweep, make_table
from pinmem_core.study.sweep import report_path
from pinmem_core.study.writers import variants_as_markdown

Lines = list[dict[str, Any]]


def results(sweep: Sweep, folder: Path) -> dict[str, Any]:
    """Return the state of all runs that were begun, and the study's table of those that ended."""
    runs = [run for name, seed in sweep.runs() if (run := _run(sweep, folder, name, seed))]
    try:
        table = make_table(sweep, folder).as_json()
    except DataError:  # no run has ended yet
        table = None
    return {"runs": runs, "table": table}


def pace_since(sweep: Sweep, folder: Path, began: float) -> dict[str, Any]:
    """Return how many iterations all runs did since a time, and how many images a second."""
    stretches = [
        (first, last, _images(sweep, *run))
        for run in sweep.runs()
        for first, last in _sessions(_lines(folder, *run))
        if first["at"] >= began
    ]
    if not stretches:
        return {"iterations": 0, "images_per_second": None}
    seconds = max(s[1]["at"] for s in stretches) - min(s[0]["at"] for s in stretches)
    done = [(last["iteration"] - first["iteration"], images) for first, last, images in stretches]
    return {
        "iterations": sum(last["iteration"] - first["iteration"] for first, last, _ in stretches),
        "images_per_second": sum(n * i for n, i in done) / seconds if seconds else None,
    }


def as_markdown(data: Mapping[str, Any]) -> str:
    """Return the tables of what `study.py` wrote: the calls, the runs, and the variants."""
    meta = data["meta"]
    parts = [
        f"{meta['title']}. {meta['device']}, torch {meta['torch']}, {meta['date'][:10]}, commit "
        f"{meta['commit'][:10]}.\n"
    ]
    heads = ["time", "processes", "iterations in all", "images/s in all"]
    parts.append(_table(heads, [_call_cells(call) for call in data["calls"]]))
    domains = list(dict.fromkeys(d for run in data["runs"] for d in run["miou"]))
    heads = ["run", "iterations", "iterations/s", "peak memory", *(f"mIoU {d}" for d in domains)]
    parts.append(_table(heads, [_run_cells(run, domains) for run in data["runs"]]))
    if data["table"]:
        parts.append(variants_as_markdown(StudyTable.model_validate(data["table"])))
    return "\n".join(parts)


def _run(sweep: Sweep, folder: Path, name: str, seed: int) -> dict[str, Any] | None:
    lines = _lines(folder, name, seed)
    ended = report_path(folder, name, seed)
    finished = ended.exists()
    if not lines and not finished:
        return None
    report = ended if finished else unfinished_path(folder, name, seed)
    found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    sessions = list(_sessions(lines))
    seconds = sum(last["at"] - first["at"] for first, last in sessions)
    done = sum(last["iteration"] - first["iteration"] for first, last in sessions)
    return {
        "variant": name,
        "seed": seed,
        "finished": finished,
        "iterations": max((line.get("iteration", 0) for line in lines), default=0),
        "of": sweep.config(name, seed).iterations,
        "iterations_per_second": done / seconds if seconds else None,
        "peak_memory_bytes": max((line.get("memory", 0) for line in lines), default=0),
        "miou": {target: scores["miou"] for target, scores in found.get("targets", {}).items()},
        "error": lines[-1].get("error") if lines else None,
    }


def _images(sweep: Sweep, name: str, seed: int) -> int:
    config = sweep.config(name, seed)
    return config.batch * len(config.sources)


def _lines(folder: Path, name: str, seed: int) -> Lines:
    path = journal_path(folder, name, seed)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _sessions(lines: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the first and the last line of each stretch without a pause."""
    known = [line for line in lines if "iteration" in line]
    starts = [n for n, line in enumerate(known) if line.get("begins")]
    for start, end in pairwise([*starts, len(known)]):
        yield known[start], known[end - 1]


def _call_cells(call: Mapping[str, Any]) -> list[str]:
    rate = call["images_per_second"]
    minutes = f"{call['seconds'] / 60:.1f} min"
    shown = "-" if rate is None else f"{rate:.1f}"
    return [minutes, str(call["processes"]), str(call["iterations"]), shown]


def _run_cells(run: Mapping[str, Any], domains: Sequence[str]) -> list[str]:
    rate, done = run["iterations_per_second"], f"{run['iterations']} of {run['of']}"
    if run["error"]:
        done = f"{done}; {run['error']}"
    return [
        f"`{run['variant']}`, seed {run['seed']}",
        done,
        "-" if rate is None else f"{rate:.2f}",
        f"{run['peak_memory_bytes'] / 1e9:.2f} GB",
        *(f"{100 * run['miou'][d]:.1f}" if d in run["miou"] else "-" for d in domains),
    ]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
