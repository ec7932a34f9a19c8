"""The interface of a logger."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from pinmem_core.errors import MachineError
from pinmem_core.events import Event
from pinmem_core.files import write_atomic


class Logger(ABC):
    """A listener that writes the events of a run for other programs.

    The events that matter are `RunStarted` (name and configuration), `Metrics` and `Images`. All
    others are ignored. A context manager closes the logger.

    Args:
        run: Folder of the run.
        after: Last iteration that an earlier part of the run has kept; 0 for a new run. The run
            repeats later iterations.

    Raises:
        MachineError: The package is not installed, or the log cannot be written. This ends the run;
            a logger that fails later gets no more events, and the run goes on.
    """

    @abstractmethod
    def __init__(self, run: Path, after: int = 0) -> None: ...

    @abstractmethod
    def __call__(self, event: Event) -> None:
        """Write an event."""

    @abstractmethod
    def close(self) -> None:
        """Write everything, and release files and connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def require_package(module: str, title: str, extra: str) -> Any:
    """Return an optional package.

    Args:
        module: Module to import.
        title: Name of the package in messages.
        extra: Extra of pinmem that installs it.

    Raises:
        MachineError: The package cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MachineError(
            f"{title}'s Python package cannot be imported ({error}).",
            f"pip install 'pinmem[{extra}]'",
        ) from error


@contextmanager
def writing(target: object, *errors: type[Exception]) -> Iterator[None]:
    """Raise MachineError for an OSError, or one of `errors`, in the block."""
    caught: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except caught as error:
        raise MachineError(f"cannot write {target}: {' '.join(str(error).split())}.") from error


def remembered_id(file: Path, new_id: str) -> str:
    """Return the id in `file`; if the file is absent, write `new_id` to it and return that."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, f"{new_id}\n".encode())
    return file.read_text().strip()
