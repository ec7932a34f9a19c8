"""Worker processes with limits of time and memory, replaced where an input ends one."""

import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic

from fuzz.cases import CLEAN, HANG, INTERNAL, MEMORY, WRONG, Target, WrongError, generator
from pinmem_core.errors import PinMemError

LONGEST = 20.0
"""Seconds that an input may take."""
MOST_MEMORY = 1 << 30
"""Bytes that a worker may use more than it did before an input."""
_LIMIT = 8 << 30
"""Bytes of address space that a worker can take beyond what it begins with."""

Job = tuple[Target, int]


@dataclass(frozen=True)
class Result:
    """What became of an input."""

    target: Target
    index: int
    outcome: str
    detail: str
    seconds: float


def run_one(target: Target, seed: int, index: int, folder: Path) -> tuple[str, str]:
    """Return the outcome of an input, and what there is to say about it."""
    shutil.rmtree(folder, ignore_errors=True)
    case = target.make(generator(target.name, seed, index))
    os.environ["PINMEM_HOME"] = str(folder / "home")
    folder.mkdir(parents=True)
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    before = _start_of_memory()
    try:
        outcome, detail = target.read(case, folder), ""
    except PinMemError as error:
        outcome, detail = CLEAN, error.message
        if case.intact:
            outcome = WRONG
        elif not error.message.strip() or "Traceback" in error.message:
            outcome = INTERNAL
        elif _ran_out_of_memory(error):
            outcome = MEMORY
    except WrongError as error:
        outcome, detail = WRONG, str(error)
    except MemoryError:
        outcome, detail = MEMORY, traceback.format_exc()
    except Exception:
        outcome, detail = INTERNAL, traceback.format_exc()
    used = _peak() - before
    return (MEMORY, f"{used / 2**20:.0f} MB") if used > MOST_MEMORY else (outcome, detail)


def _ran_out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _start_of_memory() -> int:
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is in use
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _work(connection: Connection, targets: dict[str, Target], seed: int, folder: Path) -> None:
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # libraries in C print warnings
        os.dup2(quiet, stream)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _LIMIT, size + _LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.setrecursionlimit(1000)
    while True:
        name, index = connection.recv()
        connection.send(run_one(targets[name], seed, index, folder))


class _Worker:
    def __init__(self, targets: dict[str, Target], seed: int, folder: Path) -> None:
        context = multiprocessing.get_context("fork")  # torch is imported once
        self.connection, other = context.Pipe()
        arguments = (other, targets, seed, folder)
        self.process = context.Process(target=_work, args=arguments, daemon=True)
        self.process.start()
        other.close()
        self.job: Job | None = None
        self.began = 0.0

    def begin(self, job: Job) -> None:
        self.job, self.began = job, monotonic()
        self.connection.send((job[0].name, job[1]))

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_all(jobs: Iterable[Job], seed: int, workers: int) -> Iterator[Result]:
    """Yield what becomes of each input, in the order in which they end."""
    todo = list(jobs)[::-1]
    targets = {target.name: target for target, _ in todo}
    for target in targets.values():  # what inputs are made of is built once, before workers start
        for index in range(10):
            target.make(generator(target.name, seed, index))
    with tempfile.TemporaryDirectory() as root:
        folders = [Path(root, str(number)) for number in range(workers)]
        team = [_Worker(targets, seed, folder) for folder in folders]
        try:
            while todo or any(worker.job for worker in team):
                for worker in team:
                    if worker.job is None and todo:
                        worker.begin(todo.pop())
                busy = {worker.connection: worker for worker in team if worker.job}
                wait(busy, timeout=1)
                for worker in busy.values():
                    result = _result(worker)
                    if result is None:
                        continue
                    yield result
                    worker.job = None
                    if not worker.process.is_alive() or result.outcome == HANG:
                        place = team.index(worker)
                        worker.end()
                        team[place] = _Worker(targets, seed, folders[place])
        finally:
            for worker in team:
                worker.end()


def _result(worker: _Worker) -> Result | None:
    assert worker.job
    seconds = monotonic() - worker.began
    if worker.connection.poll():
        try:
            return Result(*worker.job, *worker.connection.recv(), seconds)
        except EOFError:
            worker.process.join()
            code = worker.process.exitcode
            return Result(*worker.job, INTERNAL, f"the process ended: {code}", seconds)
    if seconds > LONGEST:
        return Result(*worker.job, HANG, f"no answer in {LONGEST:.0f} s", seconds)
    return None
