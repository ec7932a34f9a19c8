"""Ctrl-C and SIGTERM during a training run: the first ends it in good order, the second at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from pinmem_cli.output import Output

_HEEDED = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Tells whether a signal has come, and which."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        """Return whether to stop."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What shells expect of a program that a signal has ended."""
        return 128 + (self.signal or signal.SIGTERM)


@contextmanager
def stopping(output: Output) -> Iterator[Stop]:
    """Yield what the first signal sets while the block runs; a second one acts as usual."""
    stop = Stop()

    def heed(number: int, frame: FrameType | None) -> None:
        stop.signal = number
        restore()
        with suppress(RuntimeError):  # a stream refuses, where the signal came amid its writing
            output.note("finishing this iteration; the same signal again stops at once")

    before = {number: signal.signal(number, heed) for number in _HEEDED}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield stop
    finally:
        restore()
