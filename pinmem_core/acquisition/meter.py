"""Progress that is told often enough for a bar, and no more often."""

import time

from pinmem_core.events import Listener, Progress

_PAUSE = 0.1


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
            self._next = time.monotonic() + _PAUSE
            self._on_event(Progress(self._task, done, self._total, "bytes"))
