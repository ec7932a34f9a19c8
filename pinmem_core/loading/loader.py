"""Data loader of a run: one batch per iteration, on the training device."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Self

import torch

from pinmem_core.config import TrainConfig
from pinmem_core.errors import ConfigError, PinMemError
from pinmem_core.loading.batches import Batch
from pinmem_core.loading.crops import Crops, Drawn
from pinmem_core.loading.domains import Domain
from pinmem_core.loading.workers import draw_ahead

_CPU = torch.device("cpu")


class DomainLoader:
    """Iterate over the batches of a run; `of` creates the loader for a configuration.

    Args:
        crops: Dataset of crops.
        iterations: Iterations to load, counted from 0.
        workers: Number of worker processes; 0 loads in this process.
        device: Device of the batches; unfinished crops are augmented there.
    """

    def __init__(
        self, crops: Crops, iterations: range, *, workers: int = 0, device: torch.device = _CPU
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

        Raises:
            ConfigError: The batch cannot be split equally over the processes.
        """
        slots = _slots(config.batch, *shard)
        crops = Crops(domains, config, slots, finish=device.type != "cuda")
        return cls(crops, iterations, workers=config.workers, device=device)

    def __iter__(self) -> Iterator[Batch]:
        """Yield one batch per iteration.

        Raises:
            DataError: A file cannot be read, or a domain holds no labelled pixels.
            MachineError: A worker process was killed, or shared memory is full.
        """
        pin_memory = self.device.type == "cuda"
        ahead = draw_ahead(self.crops, self.iterations, workers=self.workers, pin_memory=pin_memory)
        with closing(ahead):
            for iteration, drawn in zip(self.iterations, ahead, strict=True):
                if isinstance(drawn, PinMemError):
                    raise drawn
                yield self._batch(iteration, drawn)

    def _batch(self, iteration: int, drawn: Drawn) -> Batch:
        images = drawn.images.to(self.device, non_blocking=True)
        labels = drawn.labels.to(self.device, non_blocking=True).long()
        each = len(self.crops.slots)
        shape = (len(self.crops.domains), each)
        names = drawn.samples
        return Batch(
            drawn._replace(images=images).finished().images.unflatten(0, shape),
            labels.unflatten(0, shape),
            *self.crops.meta_split(iteration),
            drawn.redrawn,
            tuple(names[first : first + each] for first in range(0, len(names), each)),
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
