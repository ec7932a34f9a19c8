"""Reading, computing and writing at the same time, in order and with little in memory."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_WAITING = 2
"""Items that may wait on either side of the computation."""


def ahead(items: Iterable[Item]) -> Generator[Item, None, None]:
    """Yield `items`, drawn by a thread that is a few in front; closing stops the thread."""
    drawn = iter(items)
    end = object()
    for item in behind(lambda _: next(drawn, end), repeat(None)):
        if item is end:
            return
        yield item  # type: ignore[misc]


def behind(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int = 1
) -> Generator[Result, None, None]:
    """Yield `function` of each item, in order, called by threads while the next item is made.

    Closing stops the work: what has begun is finished, the rest is left out.

    Args:
        function: Called in order by a single thread, or by several at once.
        items: Drawn by the thread that asks for the results.
        threads: How many call the function.
    """
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= threads + _WAITING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
