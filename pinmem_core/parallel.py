"""Doing the same to many things at once."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 8
"""Results that may wait for whoever takes them, for each job, where nobody says how many."""


def in_parallel(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    jobs: int | None = None,
    *,
    waiting: int | None = None,
) -> Generator[Result, None, None]:
    """Yield `function` of each item, in order.

    Closing stops the work: what has begun is finished, the rest is left out. Threads do: decoding,
    compressing and hashing let go of the interpreter's lock.

    Args:
        function: Called in order by a single thread, or by several at once.
        items: What to call it with; drawn by the thread that asks for the results.
        jobs: Calls at once; None for one a core.
        waiting: Calls and results that there may be at once; None for eight a job.
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
