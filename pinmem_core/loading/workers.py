"""Processes that load ahead: none outlives its loader, and a death is told in a sentence."""

import signal
from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from pinmem_core.errors import MachineError, PinMemError
from pinmem_core.heap import keep_freed_memory
from pinmem_core.loading.crops import Crops, Drawn

_AHEAD = 2
"""Iterations that each process is asked for in advance."""


def draw_ahead(
    crops: Crops, iterations: range, *, workers: int, pin_memory: bool
) -> Generator[Drawn | PinMemError, None, None]:
    """Yield the crops of each of `iterations`; closing the generator ends the processes.

    Args:
        crops: What to draw.
        iterations: In this order.
        workers: Processes, of one thread each; with 0, this one draws.
        pin_memory: Put the crops where a GPU can fetch them while the CPU goes on.

    Raises:
        MachineError: A process was killed.
    """
    drawn = _started(
        DataLoader(
            crops,
            batch_size=None,
            sampler=iterations,
            collate_fn=_unchanged,
            num_workers=workers,
            prefetch_factor=_AHEAD if workers else None,
            pin_memory=pin_memory,
            worker_init_fn=_begin,
            generator=torch.Generator(),  # or torch would seed the workers from the global one
        )
    )
    died = False
    try:
        yield from drawn
    except (RuntimeError, EOFError, ConnectionError) as error:
        died = _tells_of_a_death(error)
        if not died:
            raise
    finally:
        del drawn  # and with it the processes
    if died:  # told only now: torch's error would keep them alive
        raise MachineError(
            "a process that loads images was killed.",
            "The usual reason is a lack of memory: use fewer 'workers', or 0 to load without.",
        )


def _tells_of_a_death(error: Exception) -> bool:
    """Tell whether torch missed a process, or found the connection to it broken."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    return "in DataLoader worker process" not in str(error)  # an error that was sent


def _begin(worker: int) -> None:
    keep_freed_memory()


def _unchanged(drawn: Any) -> Any:
    return drawn


def _started(loader: DataLoader[Drawn | PinMemError]) -> Iterator[Drawn | PinMemError]:
    """Return the loader's iterator, and keep torch from raising a death in the consumer's code.

    torch does so by a handler of SIGCHLD, in whatever line is being executed. Without it, whoever
    waits for the next item learns of a death within seconds.
    """
    if not hasattr(signal, "SIGCHLD"):  # Windows
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    drawn = iter(loader)
    if signal.getsignal(signal.SIGCHLD) is not before:
        signal.signal(signal.SIGCHLD, before)
    return drawn
