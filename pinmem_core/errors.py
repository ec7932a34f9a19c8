"""Error classes. The command line maps each class to an exit code.

Every failure that a user can cause or fix is a `PinMemError`: one sentence that names what failed
and where, and a hint that names the fix.
"""

import os
import shlex
import subprocess
from collections.abc import Iterable
from difflib import get_close_matches


class PinMemError(Exception):
    """A failure with a message for the user.

    Args:
        message: Sentence that names what failed and where (file, key, line).
        hint: Sentence that names the fix; None if the message contains it.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(PinMemError):
    """A name, option or configuration key is unknown or not allowed."""


class DataError(PinMemError):
    """Data is missing, unreadable or inconsistent."""


class CheckpointError(DataError):
    """A checkpoint is missing, damaged, or does not fit its architecture."""


class StoppedRunError(PinMemError):
    """A training run stopped on request."""


class MachineError(PinMemError):
    """A resource of the machine is missing: a device, a library, disk space."""


class BusyError(MachineError):
    """Another process is using the same resource."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for an unknown name; its hint suggests the closest known one.

    Args:
        kind: Kind of object, e.g. "dataset".
        name: Name that the user gave.
        known: All known names.
    """
    options = sorted(known)
    close = get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    return ConfigError(f"unknown {kind} '{name}'.", f"{hint}Known: {', '.join(options) or 'none'}.")


def shell_join(*words: object) -> str:
    """Return `words` as a quoted shell command line."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)
