import platform
import subprocess
import sys

import pytest

from pinmem_core import devices

CHURN = """
import ctypes, resource, sys
from pinmem_core.devices import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(20_000_000) for _ in range(10)]
    for block in blocks:
        libc.memset(block, 1, 20_000_000)
    for block in blocks:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if "keep" in sys.argv:
    keep_freed_memory()
print(faults(), faults())
"""


def faults(*arguments: str) -> tuple[int, int]:
    """Return the pages mapped by two rounds of taking and freeing 200 MB, in a fresh process."""
    command = [sys.executable, "-c", CHURN, *arguments]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    first, second = map(int, said.split())
    return first, second


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's malloc")
def test_freed_memory_is_not_mapped_again():
    first, second = faults()
    assert second > 0.5 * first > 0
    first, second = faults("keep")
    assert second < 0.01 * first


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: pytest.fail("looked for mallopt"))
    devices.keep_freed_memory()
