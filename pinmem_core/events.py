"""Events that the core sends to a listener instead of printing.

Long operations take a callback `on_event` and call it with one of the dataclasses below. A terminal
shows them as bars and lines, a notebook can plot them, a test collects them in a list.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROGRESS_INTERVAL = 0.1
"""Seconds between two events of `ThrottledProgress`."""


@dataclass(frozen=True)
class Progress:
    """Progress of a task: `done` of `total` units are finished; `total` is 0 if it is unknown."""

    task: str
    done: int
    total: int
    unit: Literal["", "bytes"] = ""


@dataclass(frozen=True)
class Metrics:
    """Metrics of one training iteration (counted from 1), by name."""

    iteration: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Images:
    """Pictures of one training iteration (counted from 1): RGB arrays (H, W, 3), by name."""

    iteration: int
    images: Mapping[str, "NDArray[np.uint8]"]


@dataclass(frozen=True)
class RunStarted:
    """Start of a run, or of its resumed part: name of the run, and configuration as JSON data."""

    name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Speed:
    """Training speed since the last event of this type.

    Attributes:
        images_per_second: Images per second over all domains and processes.
        memory_bytes: Peak memory so far in bytes: of the GPU, or of this process without a GPU.
    """

    images_per_second: float
    memory_bytes: int


@dataclass(frozen=True)
class Notice:
    """A message for the user; `warning` marks those that may need an action."""

    message: str
    warning: bool = False


Event = Progress | RunStarted | Metrics | Images | Speed | Notice
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Ignore the event; this is the default listener."""


class ThrottledProgress:
    """Send the progress of a task in bytes to a listener, about ten times a second.

    Args:
        task: Name of the task.
        total: Total number of bytes; 0 if it is unknown.
        on_event: Listener.
    """

    def __init__(self, task: str, total: int, on_event: Listener) -> None:
        self._task = task
        self._total = total
        self._on_event = on_event
        self._next = 0.0

    def update(self, done: int, *, force: bool = False) -> None:
        """Send that `done` bytes are finished, if the interval has passed or `force` is set."""
        if force or time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_INTERVAL
            self._on_event(Progress(self._task, done, self._total, "bytes"))
