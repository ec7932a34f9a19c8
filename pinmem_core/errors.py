"""What can go wrong, told so that the user can mend it.

Every failure that a user can cause or mend is a `PinMemError`: one sentence that says what failed
and where, and a hint that says how to mend it. The class tells the kind of failure; a command line
turns it into an exit code.
"""

import os
import shlex
import subprocess
from collections.abc import Iterable
from difflib import get_close_matches


class PinMemError(Exception):
    """A failure with a message for humans.

    Args:
        message: What failed, and where (file, key, line).
        hint: How to mend it, or None where the message says so already.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(PinMemError):
    """A name, option or configuration key that pinmem does not understand."""


class DataError(PinMemError):
    """Data that is missing, unreadable or inconsistent."""


class CheckpointError(DataError):
    """A checkpoint that is missing, torn, or of another architecture."""


class StoppedRunError(PinMemError):
    """A training run that was asked to stop, and did so after saving its state."""


class MachineError(PinMemError):
    """Something this machine lacks: a device, a library, disk space."""


class BusyError(MachineError):
    """Another process is at work on the same thing."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a name that nobody registered, suggesting the closest known one.

    Args:
        kind: What the name was meant to name, e.g. "dataset".
        name: What the user wrote.
        known: All names that would have been understood.
    """
    options = sorted(known)
    close = get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    return ConfigError(f"unknown {kind} '{name}'.", f"{hint}Known: {', '.join(options) or 'none'}.")


def quoted(*words: object) -> str:
    """Return words as a shell takes them, for a command that can be pasted."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)
