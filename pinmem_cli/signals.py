"""Ctrl-C, SIGTERM and SIGHUP during training: the first saves the run, the next ends it at once.

SIGHUP, which comes when the terminal closes, counts as SIGTERM; `nohup` has it ignored, and then it
stays ignored. One cause often sends several signals: the system and the shell of a closed terminal
both send SIGHUP, and `torchrun` passes on a Ctrl-C that the terminal has sent already. Therefore
SIGHUP never ends a run at once, and other signals do only some time after the first.
"""

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from pinmem_cli.output import Output

_DELIBERATE = (signal.SIGINT, signal.SIGTERM)
_HEEDED = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]  # Windows has no SIGHUP

_SAME_CAUSE = 1.0
"""Seconds within which two signals have one cause."""


class Stop:
    """Whether a signal has come, and which."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        """Return whether to stop."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """Exit code by the convention of shells."""
        return 128 + (signal.SIGINT if self.signal == signal.SIGINT else signal.SIGTERM)


@contextmanager
def stopping(output: Output) -> Iterator[Stop]:
    """Yield a `Stop` that the first signal sets while the block runs; the next acts as usual."""
    stop = Stop()
    first = 0.0

    def heed(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if stop.signal is not None:
            if number in _DELIBERATE and time.monotonic() - first > _SAME_CAUSE:
                restore()
                signal.raise_signal(number)
            return
        stop.signal, first = number, time.monotonic()
        if number not in _DELIBERATE:
            _leave_terminal()
        # The stream fails if the signal interrupted a write to it, or its reader is gone.
        with suppress(RuntimeError, OSError):
            output.note("Finishing this iteration. The same signal again stops at once.")

    heeded = [
        number
        for number in _HEEDED
        if number in _DELIBERATE or signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, heed) for number in heeded}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield stop
    finally:
        restore()


@contextmanager
def deferred() -> Iterator[None]:
    """Delay signals until the end of the block."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in _HEEDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def _leave_terminal() -> None:
    """Discard further output to a terminal or pipe that is gone, so that the run continues."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.isatty(descriptor) or not _has_reader(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def _has_reader(descriptor: int) -> bool:
    """Return whether a descriptor still has a reader."""
    try:
        if not hasattr(select, "poll"):
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except OSError:
        return False
