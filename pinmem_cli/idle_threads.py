"""Let torch's idle threads sleep if other processes need the processors.

Between two operations, OpenMP's threads spin for a while, which is fastest on an idle machine. Next
to another busy process, they spin on processors that it needs, and a prediction takes several times
the CPU time. OpenMP reads its policy from the environment when torch is imported. The choice is
made before, from what the processors did while this process started.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import NamedTuple

_STATISTICS = Path("/proc/stat")
_IDLE, _WAITING_FOR_DISK, _STOLEN = 3, 4, 7
"""Columns of a processor's row."""
_BUSY = 0.3
"""Processors that other processes must use for threads to sleep."""
_FEWEST_TICKS = 5
"""Ticks (10 ms) of a processor below which its use cannot be distinguished from rounding."""
_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


class Ticks(NamedTuple):
    """Time of the processors that this process may use, since the system started.

    Attributes:
        processors: How many they are; 0 where the system does not say.
        idle: Ticks in which they had nothing to do.
        total: All ticks.
    """

    processors: int
    idle: int
    total: int


def count_ticks() -> Ticks:
    """Return the time of the processors until now."""
    try:
        mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        lines = map(str.split, _STATISTICS.read_text().splitlines())
        rows = [[*map(int, line[1 : 2 + _STOLEN])] for line in lines if line and line[0] in mine]
        idle = sum(row[_IDLE] + row[_WAITING_FOR_DISK] for row in rows)
    except (OSError, AttributeError, ValueError, IndexError):  # not Linux, or hidden
        return Ticks(0, 0, 0)
    return Ticks(len(rows), idle, sum(map(sum, rows)))


AT_START = count_ticks()
"""The count when this module was imported."""


def others_are_busy(before: Ticks, after: Ticks) -> bool:
    """Return whether the counts show that other processes were busy between them."""
    ticks = after.total - before.total
    if after.processors < 2 or ticks < _FEWEST_TICKS * after.processors:
        return False
    used = after.processors * (1 - (after.idle - before.idle) / ticks)
    return used - 1 > _BUSY  # this process used one


def let_idle_threads_sleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Choose OpenMP's passive policy if other processes are busy and the user has chosen none."""
    chosen = any(name in environment for name in _SETTINGS)
    if not chosen and others_are_busy(AT_START, count_ticks()):
        environment["OMP_WAIT_POLICY"] = "passive"
