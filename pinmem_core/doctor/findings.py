"""What a check returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

TORCH = "https://pytorch.org/get-started/locally shows the command that installs it."
LITTLE = 1_000_000_000
"""Bytes of memory or disk space below which little works."""


@dataclass(frozen=True)
class Finding:
    """A problem: one sentence, and how to fix it."""

    message: str
    fix: str


class Section(NamedTuple):
    """The result of a check: JSON-like values, and the problems."""

    values: Any
    findings: Sequence[Finding] = ()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text without its full stop, or the name of its class."""
    return (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".")
