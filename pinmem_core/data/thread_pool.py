"""Threads for downloads, which end together, and throttled progress."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import TypeVar

from pinmem_core.events import Event, Listener, Progress

T = TypeVar("T")
R = TypeVar("R")

JOIN_SECONDS = 2.0  # seconds that threads get to close their files


class StoppedError(Exception):
    """Work was given up because other work failed, or the user wants no more."""


class Stop:
    """Lets one thread end the work of others, even where they wait for the network."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._ends: list[Callable[[], None]] = []

    def set(self) -> None:
        """End all work."""
        self._event.set()
        with self._lock:
            for end in self._ends:
                end()

    def check(self) -> None:
        """Raise `StoppedError` where work is to end."""
        if self._event.is_set():
            raise StoppedError

    def wait(self, seconds: float) -> None:
        """Sleep, or raise `StoppedError` as soon as work is to end."""
        if self._event.wait(seconds):
            raise StoppedError

    @contextmanager
    def ending(self, end: Callable[[], None]) -> Iterator[None]:
        """Have `end` called by `set` while the block runs."""
        with self._lock:
            self._ends.append(end)
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._ends.remove(end)


def in_turn(on_event: Listener, stop: Stop) -> Listener:
    """Return a listener for several threads: `on_event` hears one at a time, none after `stop`."""
    lock = threading.Lock()

    def listen(event: Event) -> None:
        with lock:
            stop.check()
            on_event(event)

    return listen


def run_all(work: Callable[[T], R], items: Sequence[T], jobs: int, stop: Stop) -> list[R]:
    """Return the result of `work` on each of `items`, `jobs` of them at a time.

    The first failure stops the rest and is raised. Threads that do not end soon are left behind:
    they keep neither the caller nor the interpreter waiting.
    """
    tasks: SimpleQueue[tuple[T, Future[R]]] = SimpleQueue()
    futures: list[Future[R]] = [Future() for _ in items]
    for task in zip(items, futures, strict=True):
        tasks.put(task)
    count = min(max(jobs, 1), len(items))
    threads = [
        threading.Thread(target=_work_off, args=(work, tasks, stop), daemon=True)
        for _ in range(count)
    ]
    try:
        for thread in threads:
            thread.start()
        wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in futures if future.done() and future.exception()]
        return [future.result() for future in failed or futures]
    except BaseException:
        stop.set()
        _join(threads, JOIN_SECONDS)
        raise


def _work_off(
    work: Callable[[T], R], tasks: "SimpleQueue[tuple[T, Future[R]]]", stop: Stop
) -> None:
    while True:
        try:
            item, future = tasks.get_nowait()
        except Empty:
            return
        try:
            stop.check()
            future.set_result(work(item))
        except BaseException as error:
            future.set_exception(error)


def _join(threads: Sequence[threading.Thread], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0.0))


PROGRESS_INTERVAL = 0.1


class Meter:
    """Tells a listener how many bytes of a task are done, about ten times a second.

    Args:
        task: What is going on.
        total: All bytes of it, 0 where nobody knows.
        on_event: Who listens.
    """

    def __init__(self, task: str, total: int, on_event: Listener) -> None:
        self._task = task
        self._total = total
        self._on_event = on_event
        self._next = 0.0

    def show(self, done: int, *, now: bool = False) -> None:
        """Tell that `done` bytes are done, unless it is too soon; `now` tells it in any case."""
        if now or time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_INTERVAL
            self._on_event(Progress(self._task, done, self._total, "bytes"))
