"""Several runs of a study at once, each in a process of its own.

A process and this one are connected by a pipe. Through it come the events of the run and how it
ended; a message in the other direction, or the end of this process, stops the run after saving. A
process that is killed loses only its run.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from pinmem_core.errors import PinMemError, StoppedRunError
from pinmem_core.events import Metrics, Notice, Progress, Speed
from pinmem_core.study.run import Result, RunEvent, complete
from pinmem_core.study.sweep import Run, Sweep

_TICK = 0.2
"""Seconds between two checks of the processes and of `stop`."""
_TERMINAL = [getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)]
"""Signals that a terminal sends to all processes of a command."""


class Queue:
    """The runs that are left, in an order in which each can start.

    Args:
        sweep: The study.
        pending: Runs without a report.
        emit: Callback for the events of the runs.
    """

    def __init__(
        self, sweep: Sweep, pending: Sequence[Run], emit: Callable[[RunEvent], None]
    ) -> None:
        self.sweep = sweep
        self.pending = [*pending]
        self.emit = emit
        self.ended: dict[Run, Result] = {}

    def start(self, active: Sequence[Run] = ()) -> Run | None:
        """Remove and return a run that can start; None if there is none now."""
        for run in [*self.pending]:
            trained = self.sweep.variants[run.variant].of
            base = run._replace(variant=trained) if trained else run
            result = self.ended.get(base, "done")
            if result != "done":
                self.pending.remove(run)
                failed = PinMemError(f"it needs the run {base}, which has failed.")
                self.end(run, result if result == "elsewhere" else failed)
            elif base == run or base not in (*self.pending, *active):
                self.pending.remove(run)
                self.emit(RunEvent(run, "started"))
                return run
        return None

    def end(self, run: Run, result: Result) -> None:
        """Record how a run ended."""
        self.ended[run] = result
        self.emit(RunEvent(run, result))


def run_at_once(queue: Queue, folder: Path, jobs: int, stop: Callable[[], bool]) -> None:
    """Train and score the runs of a queue in up to `jobs` processes.

    Raises:
        StoppedRunError: `stop` returned True, and all processes have saved their runs.
    """
    active: dict[Run, _Worker] = {}
    stopped = False
    resource_tracker.ensure_running()  # starting it later would unblock signals
    try:
        while True:
            if not stopped and stop():
                stopped = True
                for worker in active.values():
                    worker.stop()
            while not stopped and len(active) < jobs and (run := queue.start([*active])):
                gpu = _least_used_gpu(worker.gpu for worker in active.values())
                active[run] = _Worker(queue.sweep, folder, run, jobs, gpu)
            if not active:
                break
            wait([worker.connection for worker in active.values()], _TICK)
            for run, worker in [*active.items()]:
                if result := worker.advance(queue.emit):
                    del active[run]
                    queue.end(run, result)
    finally:
        for worker in active.values():
            worker.process.kill()
    cut = any(isinstance(result, StoppedRunError) for result in queue.ended.values())
    if stopped and (queue.pending or cut):
        raise StoppedRunError("stopped; all runs are saved.")


class _Worker:
    """The process of one run."""

    def __init__(self, sweep: Sweep, folder: Path, run: Run, jobs: int, gpu: str | None) -> None:
        self.run, self.gpu = run, gpu
        self.result: Result | None = None
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, sweep, folder, run, jobs, torch.get_num_threads(), gpu)
        self.process: BaseProcess = context.Process(target=_work, args=arguments)
        with _terminal_signals_blocked():
            self.process.start()
        theirs.close()

    def stop(self) -> None:
        """Ask the run to save and stop."""
        with suppress(OSError):
            self.connection.send("stop")

    def advance(self, emit: Callable[[RunEvent], None]) -> Result | None:
        """Forward the events that have come; return how the run ended if its process has."""
        alive = self.process.is_alive()  # asked before reading, so that no event is lost
        with suppress(EOFError, OSError):
            while self.connection.poll():
                message = self.connection.recv()
                if isinstance(message, RunEvent):
                    emit(message)
                else:
                    self.result = message
        if alive:
            return None
        self.process.join()
        self.connection.close()
        code = self.process.exitcode or 0
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return self.result or PinMemError(
            f"its process ended {how}.", "The same command resumes the run."
        )


def _work(
    connection: Connection,
    sweep: Sweep,
    folder: Path,
    run: Run,
    jobs: int,
    threads: int,
    gpu: str | None,
) -> None:
    """Complete a run in a process of its own."""
    if gpu is not None and sweep.config(run.variant, run.seed).device in ("auto", "cuda"):
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # CUDA reads it when it is first used
    torch.set_num_threads(max(1, threads // jobs))
    terminated: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: terminated.append(number))

    def send(message: RunEvent | Result) -> None:
        with suppress(OSError):  # the other process has ended
            connection.send(message)

    def emit(event: RunEvent) -> None:
        if isinstance(event.event, Progress | Metrics | Speed | Notice):
            send(event)

    def stop() -> bool:
        try:
            return bool(terminated) or connection.poll()
        except OSError:
            return True

    send(complete(sweep, folder, run, emit, stop, jobs))


@contextmanager
def _terminal_signals_blocked() -> Iterator[None]:
    """Block the signals of a terminal for processes that start in the block."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _least_used_gpu(used: Iterator[str | None]) -> str | None:
    """Return the name of the visible GPU with the fewest runs; None without a GPU."""
    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",")[:count] if given else [*map(str, range(count))]
    taken = [*used]
    return min(names, key=taken.count, default=None)
