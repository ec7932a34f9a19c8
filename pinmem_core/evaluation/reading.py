"""Read the samples of a domain with prefetching, sharded over distributed processes."""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pinmem_core.distributed import all_gather, rank, world_size
from pinmem_core.events import Listener, Progress
from pinmem_core.inference import Protocol
from pinmem_core.preparation import Sample

T = TypeVar("T")

_AHEAD = 4
"""Number of prefetched images: enough for a fast GPU, few enough for large photos."""


class Labelled(NamedTuple):
    """A sample after the protocol's view is applied.

    Attributes:
        id: Id of the sample.
        image: RGB image, (H, W, 3).
        truth: TrainIds, (H, W); 255 is ignored.
    """

    id: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]


def my_share(
    samples: Sequence[Sample], protocol: Protocol, *, on_event: Listener, task: str
) -> Generator[Labelled, None, None]:
    """Yield this process's shard of the samples; `in_order` gathers the results of all processes.

    Args:
        samples: Samples of all processes.
        protocol: Protocol whose view is applied.
        on_event: Callback for progress events, one per sample when the next is requested.
        task: Name of the task in progress events.

    Raises:
        DataError: A file cannot be read, or the sizes of a label and its image differ.
    """
    mine = samples[rank() :: world_size()]
    pool = ThreadPoolExecutor(_AHEAD)
    coming = deque(pool.submit(_read, sample, protocol) for sample in mine[:_AHEAD])
    try:
        for done in range(1, len(mine) + 1):
            yield coming.popleft().result()
            coming.extend(pool.submit(_read, s, protocol) for s in mine[done + _AHEAD - 1 :][:1])
            on_event(Progress(task, done, len(mine)))
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(results: Sequence[T]) -> list[T]:
    """Gather the results of all processes on every process, in the order of the samples."""
    shares = all_gather(results)
    total = sum(len(share) for share in shares)
    return [shares[number % len(shares)][number // len(shares)] for number in range(total)]


def _read(sample: Sample, protocol: Protocol) -> Labelled:
    return Labelled(sample.id, *protocol.view_of(*sample.read()))
