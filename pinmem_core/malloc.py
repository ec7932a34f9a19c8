"""Stop glibc from returning freed memory to the system between iterations or images.

By default, an iteration of ResNet-50 at 256 px on a CPU unmaps and remaps 90,000 pages, which takes
10 % of its time. The peak memory of the process does not change.
"""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>
_NEVER = 2**31 - 1
_LARGEST = 32 * 2**20
"""Largest block that glibc allows to allocate from the heap, in bytes."""


def keep_freed_memory() -> None:
    """Make malloc keep freed memory for the rest of the process; do nothing without glibc."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
