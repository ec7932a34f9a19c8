"""Reading the images of a domain: ahead of whoever scores them, each rank its share."""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pinmem_core.events import Listener, Progress
from pinmem_core.inference import Protocol
from pinmem_core.preparation import Sample
from pinmem_core.ranks import from_all, rank, world_size

T = TypeVar("T")

_AHEAD = 4
"""Images that threads read ahead: enough for a fast GPU, few enough for large photos."""


class Labelled(NamedTuple):
    """A sample as it is scored.

    Attributes:
        id: Of the sample.
        image: (H, W, 3) RGB, as the protocol shows it.
        truth: (H, W) trainIds, 255 = ignore.
    """

    id: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]


def my_share(
    samples: Sequence[Sample], protocol: Protocol, *, on_event: Listener, task: str
) -> Generator[Labelled, None, None]:
    """Yield this rank's samples as a protocol sees them; `in_order` joins what ranks make of them.

    Args:
        samples: Of all ranks.
        protocol: How images are shown to the network.
        on_event: Hears of each sample when the next one is asked for.
        task: What the progress is called.

    Raises:
        DataError: A file cannot be read, or a label has another size than its image.
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
    """Return what all ranks made of their samples, in the order of the samples; on every rank."""
    shares = from_all(results)
    total = sum(len(share) for share in shares)
    return [shares[number % len(shares)][number // len(shares)] for number in range(total)]


def _read(sample: Sample, protocol: Protocol) -> Labelled:
    return Labelled(sample.id, *protocol.view_of(*sample.read()))
