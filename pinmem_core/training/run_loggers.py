"""The loggers of a run: one that fails is off, and the run goes on."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pinmem_core.events import Event, Listener, Notice
from pinmem_core.training.loggers import Logger, loggers


class RunLoggers:
    """Send events to loggers; a context manager closes them.

    Args:
        names: Names of the loggers.
        run: Folder of the run.
        after: Last iteration that an earlier part of the run has kept; 0 for a new run.
        on_event: Callback for a warning about a logger that fails.

    Raises:
        ConfigError: A logger does not exist.
        MachineError: A logger cannot be opened. Those before it are closed again.
    """

    def __init__(self, names: Sequence[str], run: Path, after: int, on_event: Listener) -> None:
        self._on_event = on_event
        self._open: dict[str, Logger] = {}
        try:
            for name in dict.fromkeys(names):
                self._open[name] = loggers.get(name)(run, after).__enter__()
        except BaseException:
            self.__exit__()
            raise

    def __call__(self, event: Event) -> None:
        """Send an event to each logger that has not failed."""
        for name, logger in [*self._open.items()]:
            try:
                logger(event)
            except Exception as error:
                self._warn(name, error, "it gets no more events; 'metrics.jsonl' has the metrics")
                del self._open[name]
                self._close(name, logger)

    def __enter__(self) -> Self:
        """Return the loggers."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Close the loggers."""
        for name, logger in self._open.items():
            self._close(name, logger, kind, error, traceback)

    def _close(self, name: str, logger: Logger, *raised: object) -> None:
        try:
            logger.__exit__(*raised)
        except Exception as error:
            self._warn(name, error, "its last events may be lost")

    def _warn(self, name: str, error: Exception, effect: str) -> None:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        self._on_event(Notice(f"the logger '{name}' failed ({reason}); {effect}", warning=True))
