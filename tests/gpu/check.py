"""Measure pinmem on a GPU, in one command: is it right, fast, fed, quick to predict and to tune?

    python tests/gpu/check.py --minutes 8 --output check.json

Results are written as they come, the cheap and decisive ones first; what did not fit into the time
is named as skipped. `--only NAME` runs one section, or the rows whose names begin so. `--device cpu
--tiny` runs everything at tiny sizes, so that this program itself can be tested without a GPU.
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent, HERE.parent / "benchmarks", HERE.parents[1]):
    sys.path.insert(0, str(folder))
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)

import fast  # noqa: E402
import fed  # noqa: E402
import predicting  # noqa: E402
import right  # noqa: E402
import torch  # noqa: E402
import tuning  # noqa: E402
from device import require  # noqa: E402
from rows import EXPECTED, Results, markdown  # noqa: E402

from pinmem_cli.output import exit_code, show_error  # noqa: E402
from pinmem_core.errors import PinMemError  # noqa: E402

FREE_BYTES = 48 << 30
"""Memory that must be free of a GPU: the naive iteration keeps three networks and their graphs."""


def parsed_options() -> Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", help="sections, or beginnings of rows' names, by semicolon")
    parser.add_argument("--output", type=Path, default=Path("check.json"))
    parser.add_argument("--reference", type=Path, default=HERE.parents[1] / "../shared/reference")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to test this program")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--backbone", default=None)
    parser.add_argument("--crop", type=int, default=None)
    parser.add_argument("--batch", type=int, default=None, help="images of each of two domains")
    parser.add_argument("--workers", type=int, default=None, help="loading processes")
    options = parser.parse_args()
    defaults = {"backbone": "resnet50", "crop": 768, "batch": 4, "workers": 16}
    if options.tiny:
        defaults = {"backbone": "resnet10", "crop": 64, "batch": 2, "workers": 1}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.threads = min(2, len(os.sched_getaffinity(0)))
    options.iterations, options.rounds = (2, 1) if options.tiny else (20, 3)
    options.band_iterations = 2 if options.tiny else 12
    if options.tiny:
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"
    options.streets, options.eaten = [], 0.0
    return options


def wanted(section: str, name: str, only: str | None) -> bool:
    """Return whether a row is to be measured."""
    texts = (only or section).split(";")
    return any(text == section or name.startswith(text) for text in texts)


def run_all(results: Results, options: Namespace) -> None:
    """Run the sections in order; the processes of `fast` start, and compile, before them."""
    of_fast = [name for name in EXPECTED["fast"] if wanted("fast", name, options.only)]
    text = Namespace(**{**vars(options), "device": options.device.type})
    if of_fast:
        with fast.workers(text, of_fast) as found:
            run_checks(results, options, "right", right.CHECKS)
            limits = fast.measure(results, text, found, of_fast)
            options.eaten = max((2 * options.batch * w.rate for w in found.values()), default=0.0)
            run_checks(results, options, "fed", fed.CHECKS)
            run_checks(results, options, "evaluation", predicting.CHECKS)
            run_checks(results, options, "tuning", tuning.CHECKS)
            later = [name for name in found if name in fast.LATER]
            fast.measure_variants(results, text, found, limits, later)
    else:
        run_checks(results, options, "right", right.CHECKS)
        run_checks(results, options, "fed", fed.CHECKS)
        run_checks(results, options, "evaluation", predicting.CHECKS)
        run_checks(results, options, "tuning", tuning.CHECKS)


def run_checks(results: Results, options: Namespace, section: str, checks: dict) -> None:
    """Run the checks of a section that are wanted."""
    for name, (check, needs) in checks.items():
        if not wanted(section, name, options.only):
            continue
        if not options.compile and name.endswith("compiled"):
            continue
        seconds = 1 if options.tiny else needs
        results.run(section, name, lambda row, c=check: c(row, options), seconds)


def main() -> int:
    """Measure, print the table, and return the exit code."""
    options = parsed_options()
    try:
        options.device = require(options.device, FREE_BYTES)
    except PinMemError as error:
        show_error(error)
        return exit_code(error)
    deadline = time.monotonic() + 60 * options.minutes
    results = Results(options.output, options.device, shlex.join(sys.argv), deadline)
    with tempfile.TemporaryDirectory() as scratch:
        options.scratch = Path(scratch)
        os.environ["PINMEM_HOME"] = f"{scratch}/home"
        run_all(results, options)
    print(f"\n{markdown(results.rows)}")
    bad = [row.name for row in results.rows if row.status in ("failed", "error")]
    if bad:
        print(f"{len(bad)} rows failed: {', '.join(bad)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
