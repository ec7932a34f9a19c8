"""Doing the same to many things at once."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 8
"""Results that may wait for whoever takes them, for each job."""


def in_parallel(
    function: Callable[[Item], Result], items: Iterable[Item], jobs: int | None = None
) -> Generator[Result, None, None]:
    """Yield `function` of each item, in order; closing the generator stops the work.

    Threads do: decoding, compressing and hashing let go of the interpreter's lock.

    Args:
        function: Called in several threads.
        items: What to call it with.
        jobs: Calls at once; None for one a core.
    """
    jobs = jobs or os.cpu_count() or 1
    pool = ThreadPoolExecutor(jobs)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= jobs * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
