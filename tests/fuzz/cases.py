"""What an input is, and what may become of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

RIGHT = "right"
"""The value equals that of an independent reading, or of a second reading of what was written."""
ACCEPTED = "accepted"
"""The value cannot be checked."""
CLEAN = "clean error"
"""A PinMemError: one sentence for the user."""
WRONG, INTERNAL, HANG, MEMORY = "wrong", "internal error", "hang", "memory"
OUTCOMES = (CLEAN, RIGHT, ACCEPTED, WRONG, INTERNAL, HANG, MEMORY)
FAILURES = (WRONG, INTERNAL, HANG, MEMORY)

INTACT_SHARE = 0.05
"""Of the inputs that are not damaged at all; refusing one of them is wrong."""


class WrongError(Exception):
    """A value that differs from that of an independent reading."""


@dataclass(frozen=True)
class Case:
    """An input.

    Attributes:
        files: Contents by path below an empty folder.
        intact: Whether it is undamaged and has to be accepted.
        known: What the target's `read` compares with.
    """

    files: Mapping[str, bytes]
    intact: bool = False
    known: Any = None


@dataclass(frozen=True)
class Target:
    """A format that is read from outside.

    Attributes:
        name: Of the format.
        make: Returns the input that a random generator draws.
        read: Lets pinmem read the input in a folder; returns `RIGHT` or `ACCEPTED`, and raises
            WrongError, or whatever pinmem raises.
        share: How many inputs it gets, in proportion to the others.
    """

    name: str
    make: Callable[[Random], Case]
    read: Callable[[Case, Path], str]
    share: int = 4


def generator(name: str, seed: int, index: int) -> Random:
    """Return what draws the input `index` of a format; the same on every machine."""
    return Random(f"{name}/{seed}/{index}")


def require(holds: object, problem: str) -> None:
    """Raise WrongError unless something holds."""
    if not holds:
        raise WrongError(problem)
