"""Worker processes that load crops in advance; they end with the loader and report crashes."""

import signal
from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from pinmem_core.devices import keep_freed_memory
from pinmem_core.errors import MachineError, PinMemError
from pinmem_core.loading.crops import Crops, Drawn

_AHEAD = 2
"""Prefetched iterations per worker process."""


def draw_ahead(
    crops: Crops, iterations: range, *, workers: int, pin_memory: bool
) -> Generator[Drawn | PinMemError, None, None]:
    """Yield the crops of each iteration; closing the generator ends the worker processes.

    Args:
        crops: Dataset of crops.
        iterations: Iterations to load, in this order.
        workers: Number of worker processes with one thread each; 0 loads in this process.
        pin_memory: Whether to copy the crops to pinned memory for asynchronous GPU transfers.

    Raises:
        MachineError: A worker process was killed.
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
            generator=torch.Generator(),  # torch would else draw from the global generator
        )
    )
    died = False
    try:
        yield from drawn
    except (RuntimeError, EOFError, ConnectionError) as error:
        died = _is_worker_death(error)
        if not died:
            raise
    finally:
        del drawn  # ends the processes
    if died:  # raised outside of `except`, because torch's error would keep the processes alive
        raise MachineError(
            "a process that loads images was killed.",
            "The usual reason is a lack of memory: use fewer 'workers', or 0 for none.",
        )


def _is_worker_death(error: Exception) -> bool:
    """Return whether the error means that a worker process died or its connection broke."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    return "in DataLoader worker process" not in str(error)  # raised inside of a worker


def _begin(worker: int) -> None:
    keep_freed_memory()


def _unchanged(drawn: Any) -> Any:
    return drawn


def _started(loader: DataLoader[Drawn | PinMemError]) -> Iterator[Drawn | PinMemError]:
    """Return the loader's iterator without torch's SIGCHLD handler.

    The handler raises the death of a worker in whatever line the consumer executes. Without it,
    waiting for the next item raises within seconds.
    """
    if not hasattr(signal, "SIGCHLD"):  # Windows
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    drawn = iter(loader)
    if signal.getsignal(signal.SIGCHLD) is not before:
        signal.signal(signal.SIGCHLD, before)
    return drawn
