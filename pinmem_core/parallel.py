"""Map a function over items with a thread pool, in order."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 8  # default number of pending calls and results per job


def parallel_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    jobs: int | None = None,
    *,
    waiting: int | None = None,
) -> Generator[Result, None, None]:
    """Yield `function(item)` for each item, in order.

    Closing the generator finishes running calls and cancels the others. Threads suffice, because
    decoding, compression and hashing release the GIL.

    Args:
        function: Function to call. With one job, calls run in order; with several, concurrently.
        items: Arguments; the consumer's thread iterates over them.
        jobs: Number of threads; None for one per core.
        waiting: Maximum number of pending calls and results; None for eight per job.
    """
    jobs = jobs or os.cpu_count() or 1
    pool = ThreadPoolExecutor(jobs)
    waiting = waiting or jobs * _AHEAD
    begun: deque[Future[Result]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) >= waiting:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def prefetch(items: Iterable[Item], count: int = 3) -> Generator[Item, None, None]:
    """Yield `items` while a thread reads up to `count` ahead; closing the generator stops it."""
    iterator, end = iter(items), object()
    for item in parallel_map(lambda _: next(iterator, end), repeat(None), 1, waiting=count):
        if item is end:
            return
        yield item  # type: ignore[misc]
