"""Doing the same to many things at once."""

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], jobs: int | None = None
) -> Generator[Result, None, None]:
    """Yield `function` of each item, in order; closing the generator stops the work.

    Threads do: decoding, compressing and hashing let go of the interpreter's lock.

    Args:
        function: Called in several threads.
        items: What to call it with.
        jobs: Calls at once; None for one a core.
    """
    pool = ThreadPoolExecutor(jobs or os.cpu_count())
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
