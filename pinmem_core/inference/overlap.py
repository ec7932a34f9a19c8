"""Reading, computing and writing at the same time, in order and with little in memory."""

from collections.abc import Callable, Generator, Iterable
from itertools import repeat
from typing import TypeVar

from pinmem_core.parallel import in_parallel

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
    """Yield `function` of each item, in order, called by threads while the next item is made."""
    return in_parallel(function, items, threads, waiting=threads + _WAITING)
