"""Data loader of a run: one batch per iteration, on the training device."""

import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, Self

import torch
from torch.utils.data import DataLoader

from pinmem_core.config import TrainConfig
from pinmem_core.data.batches import Batch, CropBatch, CropDataset, Domain
from pinmem_core.data.transforms import IMAGENET, Normalization
from pinmem_core.devices import keep_freed_memory
from pinmem_core.errors import ConfigError, MachineError, PinMemError

_AHEAD = 2
"""Prefetched iterations per worker process."""


def prefetch_crops(
    crops: CropDataset, iterations: range, *, workers: int, pin_memory: bool
) -> Generator[CropBatch | PinMemError, None, None]:
    """Yield the crops of each iteration; closing the generator ends the worker processes.

    Args:
        crops: Dataset of crops.
        iterations: Iterations to load, in this order.
        workers: Number of worker processes with one thread each; 0 loads in this process.
        pin_memory: Whether to copy the crops to pinned memory for asynchronous GPU transfers.

    Raises:
        MachineError: A worker process was killed.
    """
    loaded = _started(
        DataLoader(
            crops,
            batch_size=None,
            sampler=iterations,
            collate_fn=_unchanged,
            num_workers=workers,
            prefetch_factor=_AHEAD if workers else None,
            pin_memory=pin_memory,
            worker_init_fn=_begin,
            generator=torch.Generator(),  # leaves the global generator unchanged
        )
    )
    died = False
    try:
        yield from loaded
    except (RuntimeError, EOFError, ConnectionError) as error:
        died = _is_worker_death(error)
        if not died:
            raise
    finally:
        del loaded  # ends the processes
    if died:  # raised outside of `except`, because torch's error would keep the processes alive
        raise MachineError(
            "a process that loads images was killed.",
            "It probably ran out of memory. Use fewer 'workers', or 0.",
        )


def _is_worker_death(error: Exception) -> bool:
    """Return whether the error means that a worker process died or its connection broke."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    return "in DataLoader worker process" not in str(error)  # raised inside of a worker


def _begin(worker: int) -> None:
    keep_freed_memory()


def _unchanged(crops: Any) -> Any:
    return crops


def _started(loader: DataLoader[CropBatch | PinMemError]) -> Iterator[CropBatch | PinMemError]:
    """Return the loader's iterator without torch's SIGCHLD handler.

    The handler raises the death of a worker in whatever line the consumer executes. Without it,
    waiting for the next item raises within seconds.
    """
    if not hasattr(signal, "SIGCHLD"):  # Windows
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    crops = iter(loader)
    if signal.getsignal(signal.SIGCHLD) is not before:
        signal.signal(signal.SIGCHLD, before)
    return crops


_CPU = torch.device("cpu")


class DomainLoader:
    """Iterate over the batches of a run; `of` creates the loader for a configuration.

    Args:
        crops: Dataset of crops.
        iterations: Iterations to load, counted from 0.
        workers: Number of worker processes; 0 loads in this process.
        device: Device of the batches; crops without photometric augmentation get it there.
    """

    def __init__(
        self,
        crops: CropDataset,
        iterations: range,
        *,
        workers: int = 0,
        device: torch.device = _CPU,
    ) -> None:
        self.crops = crops
        self.iterations = iterations
        self.workers = workers
        self.device = device

    @classmethod
    def of(
        cls,
        domains: Sequence[Domain],
        config: TrainConfig,
        iterations: range,
        device: torch.device = _CPU,
        shard: tuple[int, int] = (0, 1),
        normalization: Normalization = IMAGENET,
        views: int = 1,
    ) -> Self:
        """Return the loader for `iterations` of a run.

        Args:
            domains: Source domains, D of them.
            config: Configuration of the run.
            iterations: Iterations to load, counted from 0.
            device: Device of the batches. With CUDA, workers only decode and crop; the GPU computes
                the photometric augmentation.
            shard: Rank of this process and number of processes. Each process loads an equal part of
                each domain's images; together they load the batch of a single process.
            normalization: Mean and standard deviation that the network expects.
            views: Number of views of each crop, which differ in their photometric augmentation.

        Raises:
            ConfigError: The batch cannot be split equally over the processes.
        """
        slots = _slots(config.batch, *shard)
        augment = device.type != "cuda"
        crops = CropDataset(
            domains, config, slots, augment=augment, normalization=normalization, views=views
        )
        return cls(crops, iterations, workers=config.workers, device=device)

    def __iter__(self) -> Iterator[Batch]:
        """Yield one batch per iteration.

        Raises:
            DataError: A file cannot be read, or a domain holds no labelled pixels.
            MachineError: A worker process was killed, or shared memory is full.
        """
        pin_memory = self.device.type == "cuda"
        ahead = prefetch_crops(
            self.crops, self.iterations, workers=self.workers, pin_memory=pin_memory
        )
        with closing(ahead):
            for iteration, crops in zip(self.iterations, ahead, strict=True):
                if isinstance(crops, PinMemError):
                    raise crops
                yield self._batch(iteration, crops)

    def _batch(self, iteration: int, crops: CropBatch) -> Batch:
        names = crops.samples
        images = crops.images.to(self.device, non_blocking=True)
        labels = crops.labels.to(self.device, non_blocking=True).long()
        more = tuple(view.to(self.device, non_blocking=True) for view in crops.more_views)
        crops = crops._replace(images=images, more_views=more).augmented(self.crops.normalization)
        each = len(self.crops.slots)
        shape = (len(self.crops.domains), each)
        return Batch(
            crops.images.unflatten(0, shape),
            labels.unflatten(0, shape),
            *self.crops.meta_split(iteration),
            crops.redrawn,
            tuple(names[first : first + each] for first in range(0, len(names), each)),
            tuple(view.unflatten(0, shape) for view in crops.more_views),
        )


def _slots(batch: int, rank: int, world: int) -> range:
    """Return the range of a domain's `batch` images that the process with `rank` loads."""
    each, rest = divmod(batch, world)
    if rest:
        raise ConfigError(
            f"{batch} images of each domain cannot be shared equally by {world} processes.",
            f"Choose a 'batch' that is a multiple of {world}, or another number of processes.",
        )
    return range(rank * each, (rank + 1) * each)
