"""What the core tells whoever is listening, instead of printing.

Long operations take an `on_event` callable and pass it one of the dataclasses below. A terminal
turns them into bars and lines, a notebook may plot them, a test collects them in a list.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of `task` are finished; `total` is 0 where nobody knows it."""

    task: str
    done: int
    total: int
    unit: Literal["", "bytes"] = ""


@dataclass(frozen=True)
class Metrics:
    """Figures of one training iteration (counted from 1), by name."""

    iteration: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Speed:
    """How fast a training runs, since this was last told.

    Attributes:
        images_per_second: Of all domains and processes together.
        memory_bytes: The most that was in use so far: of the GPU, or else of this process.
    """

    images_per_second: float
    memory_bytes: int


@dataclass(frozen=True)
class Notice:
    """A sentence worth reading; `warning` marks those that may need an action."""

    message: str
    warning: bool = False


Event = Progress | Metrics | Speed | Notice
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing: the default listener."""
