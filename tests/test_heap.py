import platform
import subprocess
import sys

import pytest

CHURN = """
import resource, sys
import torch
from pinmem_core.heap import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if "keep" in sys.argv:
    keep_freed_memory()
for count in (1, 20):
    before = faults()
    for _ in range(count):
        blocks = [torch.ones(2**20) for _ in range(25)]  # 100 MB
        del blocks
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's malloc")
def test_freed_memory_is_not_mapped_again():
    def faults(*arguments: str) -> int:
        command = [sys.executable, "-c", CHURN, *arguments]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults("keep") < 0.1 * faults()


def test_without_glibc_nothing_happens(monkeypatch):
    from pinmem_core import heap

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: pytest.fail("looked for mallopt"))
    heap.keep_freed_memory()
