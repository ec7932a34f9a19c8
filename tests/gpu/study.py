"""Trains the variants of a study next to one another on one device, for so many minutes.

Run `python tests/gpu/study.py --camvid FOLDER --init-weights FILE --minutes 5`. Each run has a
process of its own; they share the device, and the processor's cores load for all. Runs that have
ended are kept. When time is up, the others save themselves and are scored as they are; the same
command goes on with them. The results are written whenever one comes, so that nothing is lost
where the program is cut off; a table is printed at the end. tests/gpu/README.md says more.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from device import require  # noqa: E402
from study_results import as_markdown, pace_since, results  # noqa: E402
from study_run import complete  # noqa: E402

from pinmem_cli.output import exit_code, show_error  # noqa: E402
from pinmem_core.data.catalog import get_card  # noqa: E402
from pinmem_core.data.prepare import prepare  # noqa: E402
from pinmem_core.errors import ConfigError, PinMemError  # noqa: E402
from pinmem_core.files import write_atomic  # noqa: E402
from pinmem_core.images import write_png  # noqa: E402
from pinmem_core.paths import dataset_root  # noqa: E402
from pinmem_core.study import Sweep, read_sweep  # noqa: E402
from pinmem_core.study.sweep import report_path, run_path  # noqa: E402

TINY = {
    "iterations": 3,
    "batch": 2,
    "workers": 0,
    "log_every": 1,
    "augmentation.crop": 32,
    "model.backbone": "resnet10",
    "model.feature_dim": 16,
    "model.memory.init_batches": 1,
    "compute.precision": "float32",
}
"""Settings of a study that only shows that the program runs."""
FREE_BYTES = 3 << 30
"""Memory that a process must find on a GPU: a context, and a batch of the default study."""
WRITTEN_EVERY = 5.0
"""Seconds from one writing of the results to the next while no run ends."""

Run = tuple[str, int]


class Runs:
    """Starts runs as long as there is time, several at once, and keeps the results on disk.

    Args:
        sweep: What to compare.
        folder: Of the study.
        output: Where the results go.
        meta: What they begin with.
        processes: Runs at once.
    """

    def __init__(
        self, sweep: Sweep, folder: Path, output: Path, meta: dict[str, Any], processes: int
    ) -> None:
        self.sweep, self.folder, self.output, self.meta = sweep, folder, output, meta
        self.processes = processes
        self.began = time.time()
        self.pending = [run for run in sweep.runs() if not report_path(folder, *run).exists()]
        self.active: dict[Run, BaseProcess] = {}
        self.started: dict[Run, float] = {}
        self.took: dict[str, float] = {}
        self.signalled = False

    def work(self, seconds: float, grace: float) -> dict[str, Any]:
        """Run for `seconds`, `grace` of which are for saving and scoring, and return results."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._heed)
        due = self.began + seconds - grace
        written = 0.0
        while (self.pending or self.active) and time.time() < due and not self.signalled:
            if self._reap() | self._start(due) or time.time() - written > WRITTEN_EVERY:
                self.write()
                written = time.time()
            if not self.active:
                break  # what is pending cannot be finished in time
            time.sleep(0.1)
        self._stop(time.time() + grace)
        data = self.write()
        with (self.folder / "calls.jsonl").open("a", encoding="utf-8") as calls:
            calls.write(json.dumps(data["calls"][-1]) + "\n")
        return data

    def write(self) -> dict[str, Any]:
        """Write the results so far, and return them."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        call = {
            "date": datetime.fromtimestamp(self.began, UTC).isoformat(timespec="seconds"),
            "seconds": time.time() - self.began,
            "processes": self.processes,
            **pace_since(self.sweep, self.folder, self.began),
        }
        calls = [*map(json.loads, lines), call]
        data = {"meta": self.meta, "calls": calls, **results(self.sweep, self.folder)}
        write_atomic(self.output, (json.dumps(data, indent=1) + "\n").encode())
        return data

    def _heed(self, number: int, frame: object) -> None:
        self.signalled = True

    def _start(self, due: float) -> bool:
        """Start what there is room and time for; return whether anything was."""
        started = False
        for run in list(self.pending):
            if len(self.active) == self.processes:
                break
            if not self._ready(run) or time.time() + self.took.get(run[0], 0.0) > due:
                continue
            threads = max(1, len(os.sched_getaffinity(0)) // self.processes)
            arguments = (self.sweep, self.folder, *run, threads)
            process = multiprocessing.get_context("spawn").Process(target=complete, args=arguments)
            process.start()
            self.pending.remove(run)
            self.active[run], self.started[run] = process, time.time()
            started = True
        return started

    def _ready(self, run: Run) -> bool:
        """Return whether a run can start: one that takes another's network waits for its end."""
        trained = self.sweep.variants[run[0]].of
        return not trained or (run_path(self.folder, trained, run[1]) / "scores.json").exists()

    def _reap(self) -> bool:
        """Forget the processes that have ended; return whether any had."""
        ended = [run for run, process in self.active.items() if not process.is_alive()]
        for run in ended:
            self.active.pop(run).join()
            if report_path(self.folder, *run).exists():
                self.took[run[0]] = time.time() - self.started[run]
        return bool(ended)

    def _stop(self, until: float) -> None:
        """Ask all that run to save themselves, and end those that are not done in time."""
        for process in self.active.values():
            process.terminate()
        for process in self.active.values():
            process.join(max(0.0, until - time.time()))
            if process.is_alive():
                process.kill()
                process.join()
        self.active.clear()


def changed(sweep: Sweep, options: argparse.Namespace) -> Sweep:
    """Return the study with what the command line says about it."""
    given = {"device": options.device, "workers": options.workers}
    given |= TINY if options.tiny else {}
    for key, value in (("iterations", options.iterations), ("init_weights", options.init_weights)):
        given |= {} if value is None else {key: value}
    if options.init_weights is None:
        given["init_weights"] = None
    names = options.variants.split(",") if options.variants else list(sweep.variants)
    if unknown := set(names) - set(sweep.variants):
        raise ConfigError(f"the study has no variant '{min(unknown)}'.")
    found = {
        **sweep.model_dump(),
        "settings": {**sweep.settings, **given},
        "variants": {name: sweep.variants[name].model_dump() for name in names},
        "seeds": sweep.seeds[: options.seeds],
    }
    if sweep.baseline not in names:
        found["baseline"] = names[0]
    return Sweep.model_validate(found)


def draw_camvid(folder: Path) -> Path:
    """Write a few random frames of each of CamVid's drives, and return their folder."""
    rng = np.random.default_rng(0)
    for drive in ("0001TP", "0006R0", "0016E5", "Seq05VD"):
        for number in range(6):
            name = f"{drive}_{number:05}.png"
            write_png(folder / "images" / name, rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
            write_png(folder / "labels" / name, rng.integers(0, 12, (48, 64), dtype=np.uint8))
    return folder


def describe(device: torch.device, sweep: Sweep, options: argparse.Namespace) -> dict[str, Any]:
    """Return what has to stand next to every figure."""
    cpu = f"CPU, {len(os.sched_getaffinity(0))} cores"
    return {
        "title": sweep.title,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "commit": os.environ.get("PINMEM_COMMIT") or commit(),
        "command": shlex.join(["python", *sys.argv]),
    }


def commit() -> str:
    """Return the commit of this checkout; "unknown" where it is a copy without its history."""
    command = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options, all of them settled."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--study", type=Path, default=HERE / "camvid.toml", help="a study file")
    add("--folder", type=Path, default=Path("gpu-study"), help="where runs are kept")
    add("--output", type=Path, help="the results; by default results.json in that folder")
    add("--minutes", type=float, default=5.0, help="time for everything")
    add("--grace", type=float, default=30.0, help="seconds of it for saving and scoring at the end")
    add("--processes", type=int, default=4, help="runs at once")
    add("--workers", type=int, help="loading processes a run; by default all cores are shared")
    add("--iterations", type=int, help="of each run; by default what the study says")
    add("--seeds", type=int, help="how many of the study's seeds")
    add("--variants", help="some of the study's, by comma")
    add("--camvid", type=Path, help="CamVid as it was downloaded; is prepared in the folder")
    add("--init-weights", help="weights of the backbone: a file; by default random ones")
    add("--device", default="cuda", help="cuda, cuda:N or cpu")
    add("--tiny", action="store_true", help="drawn frames and few iterations: to see that it runs")
    options = parser.parse_args(arguments)
    options.folder = options.folder.absolute()
    options.output = options.output or options.folder / "results.json"
    if options.workers is None:
        cores = len(os.sched_getaffinity(0))
        options.workers = max(1, cores // options.processes - 1) if cores > 2 else 0
    if options.init_weights:
        options.init_weights = str(Path(options.init_weights).absolute())
    return options


def main() -> int:
    """Do what the command line says; return the exit code."""
    began, options = time.time(), parse()
    try:
        device = require(options.device, options.processes * FREE_BYTES)
        sweep = changed(read_sweep(options.study), options)
        options.folder.mkdir(parents=True, exist_ok=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        camvid = draw_camvid(options.folder / "drawn") if options.tiny else options.camvid
        if camvid:
            os.environ["PINMEM_HOME"] = str(options.folder / "home")
            if not dataset_root("camvid").exists():
                prepare(get_card("camvid"), [camvid])
        meta = describe(device, sweep, options)
        runs = Runs(sweep, options.folder, options.output, meta, options.processes)
        data = runs.work(60 * options.minutes - (time.time() - began), options.grace)
    except PinMemError as error:
        show_error(error)
        return exit_code(error)
    print(as_markdown(data))
    return 1 if any(run["error"] for run in data["runs"]) else 0


if __name__ == "__main__":
    sys.exit(main())
