"""A pool of daemon threads for transfers that are cancelled together."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, wait
from contextlib import contextmanager, suppress
from typing import TypeVar

from pinmem_core.events import Event, Listener

T = TypeVar("T")
R = TypeVar("R")

JOIN_SECONDS = 2.0
"""Time in seconds that cancelled threads have to close their files."""


class CancelToken:
    """Cancel the work of other threads, even while they wait for the network."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []

    def cancel(self) -> None:
        """Cancel all work."""
        self._cancelled.set()
        with self._lock:
            for callback in self._callbacks:
                callback()

    def sleep(self, seconds: float) -> None:
        """Sleep, or raise `CancelledError` as soon as the work is cancelled."""
        if self._cancelled.wait(seconds):
            raise CancelledError

    def check(self) -> None:
        """Raise `CancelledError` if the work is cancelled."""
        self.sleep(0)

    @contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` if the work is cancelled while the block runs."""
        with self._lock:
            self._callbacks.append(callback)
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)


def serialized(on_event: Listener, token: CancelToken) -> Listener:
    """Return a thread-safe listener that calls `on_event` until `token` is cancelled."""
    lock = threading.Lock()

    def listener(event: Event) -> None:
        with lock:
            token.check()
            on_event(event)

    return listener


def run_all(work: Callable[[T], R], items: Sequence[T], jobs: int, token: CancelToken) -> list[R]:
    """Return `work(item)` for each item, computed by up to `jobs` daemon threads.

    The first failure cancels `token` and is raised. Threads that do not end within `JOIN_SECONDS`
    are abandoned. `ThreadPoolExecutor` would keep the interpreter waiting for them.
    """
    futures: list[Future[R]] = [Future() for _ in items]
    tasks = list(zip(items, futures, strict=True))[::-1]

    def run_tasks() -> None:
        with suppress(IndexError):  # no task is left
            while True:
                item, future = tasks.pop()
                try:
                    token.check()
                    future.set_result(work(item))
                except BaseException as error:
                    future.set_exception(error)

    threads = [threading.Thread(target=run_tasks, daemon=True) for _ in items[: max(jobs, 1)]]
    try:
        for thread in threads:
            thread.start()
        finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in finished:
            future.result()
        return [future.result() for future in futures]
    except BaseException:
        token.cancel()
        deadline = time.monotonic() + JOIN_SECONDS
        for thread in threads:
            if thread.ident:
                thread.join(max(deadline - time.monotonic(), 0.0))
        raise
