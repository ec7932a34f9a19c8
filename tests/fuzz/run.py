"""The command line: counts what becomes of damaged inputs, by format."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from time import monotonic
from typing import Any

from fuzz.cases import FAILURES, OUTCOMES, Target, generator
from fuzz.pool import Job, Result, run_all, run_one
from fuzz.targets import TARGETS

_MARKERS = ("<!-- fuzz counts -->", "<!-- end -->")
Counts = Mapping[str, Mapping[str, int]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; return 1 if an input was taken wrongly, crashed, hung or took memory."""
    options = _options(arguments)
    targets = [target for target in TARGETS if not options.only or target.name in options.only]
    if options.index is not None:
        return _show_one(targets[0], options.seed, options.index)
    began = monotonic()
    counts: dict[str, Counter[str]] = {target.name: Counter() for target in targets}
    slowest = 0.0
    for number, result in enumerate(
        run_all(jobs(targets, options.inputs), options.seed, options.workers), start=1
    ):
        counts[result.target.name][result.outcome] += 1
        slowest = max(slowest, result.seconds)
        if result.outcome in FAILURES:
            _keep(result, options.seed, options.failures)
        if number % 1000 == 0:
            print(f"{number} of {options.inputs}", file=sys.stderr)
    print(table(counts))
    only = "".join(f" --only '{name}'" for name in options.only or ())
    facts = {
        "command": f"python -m tests.fuzz --inputs {options.inputs} --seed {options.seed}{only}",
        "device": f"{os.cpu_count()} CPU cores",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "seconds": round(monotonic() - began),
        "slowest_seconds": round(slowest, 2),
        "counts": counts,
    }
    if options.output:
        options.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if options.page:
        _write_page(options.page, facts)
    return int(any(of[outcome] for of in counts.values() for outcome in FAILURES))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="number of inputs")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--output", type=Path, help="JSON file of the counts")
    parser.add_argument("--page", type=Path, help="Markdown page whose table is replaced")
    parser.add_argument(
        "--failures",
        type=Path,
        default=Path(tempfile.gettempdir(), "pinmem-fuzz"),
        help="folder for inputs that fail (default: %(default)s)",
    )
    parser.add_argument("--only", action="append", help="a format; may be given several times")
    parser.add_argument("--index", type=int, help="run this input alone, and show its traceback")
    return parser.parse_args(arguments)


def jobs(targets: Sequence[Target], inputs: int) -> list[Job]:
    """Return the inputs of all formats: mixed, and in proportion to their shares."""
    turns = [target for target in targets for _ in range(target.share)]
    seen: Counter[str] = Counter()
    chosen = []
    for target in islice(cycle(turns), inputs):
        chosen.append((target, seen[target.name]))
        seen[target.name] += 1
    return chosen


def table(counts: Counts) -> str:
    """Return the counts as a Markdown table."""
    heads = ["format", *OUTCOMES]
    rows = [[name, *(f"{of[outcome]:,}" for outcome in OUTCOMES)] for name, of in counts.items()]
    sums = (sum(of[outcome] for of in counts.values()) for outcome in OUTCOMES)
    rows.append(["**all**", *(f"**{number:,}**" for number in sums)])
    lines = [heads, ["---", *["---:"] * len(OUTCOMES)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _write_page(page: Path, facts: Mapping[str, Any]) -> None:
    """Put the counts between the markers of a page."""
    head, _, rest = page.read_text(encoding="utf-8").partition(f"{_MARKERS[0]}\n")
    _, marker, tail = rest.partition(_MARKERS[1])
    if not marker:
        raise SystemExit(f"{page} lacks the markers {' and '.join(_MARKERS)}")
    how = (
        f"`{facts['command']}`: {facts['device']}, {facts['date']}, commit {facts['commit']}, "
        f"{facts['seconds']} s in all, {facts['slowest_seconds']} s for the slowest input."
    )
    text = f"{head}{_MARKERS[0]}\n{how}\n\n{table(facts['counts'])}\n{marker}{tail}"
    page.write_text(text, encoding="utf-8")


def _keep(result: Result, seed: int, root: Path) -> None:
    """Save an input that failed, with what is known of it."""
    folder = root / f"{result.target.name.replace(' ', '-')}-{seed}-{result.index}"
    case = result.target.make(generator(result.target.name, seed, result.index))
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    reproduce = (
        f"python -m tests.fuzz --seed {seed} --only '{result.target.name}' --index {result.index}"
    )
    text = f"{result.outcome}\n{reproduce}\n\n{result.detail}\n"
    (folder / "reason.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
    last = result.detail.strip().rpartition("\n")[2]
    print(f"{result.outcome}: {folder}: {last[:200]!r}", file=sys.stderr)


def _show_one(target: Target, seed: int, index: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        outcome, detail = run_one(target, seed, index, Path(folder, "input"))
    print(f"{outcome}\n{detail}")
    return int(outcome in FAILURES)


def _commit() -> str:
    try:
        return subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return traceback.format_exc(limit=0).strip()
