"""Overlap reading, computation and writing, in order and with few items in memory."""

from collections.abc import Callable, Generator, Iterable
from itertools import repeat
from typing import TypeVar

from pinmem_core.parallel import in_parallel

Item = TypeVar("Item")
Result = TypeVar("Result")

_WAITING = 2
"""Number of items that may be queued on either side of the computation."""


def ahead(items: Iterable[Item]) -> Generator[Item, None, None]:
    """Yield `items`, prefetched by a thread; closing the generator stops the thread."""
    iterator = iter(items)
    end = object()
    for item in behind(lambda _: next(iterator, end), repeat(None)):
        if item is end:
            return
        yield item  # type: ignore[misc]


def behind(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int = 1
) -> Generator[Result, None, None]:
    """Yield `function(item)` for each item, in order; threads run it while `items` advances."""
    return in_parallel(function, items, threads, waiting=threads + _WAITING)
