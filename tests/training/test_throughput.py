"""What a run says of its speed and memory, on systems that count them and on others."""

import subprocess
import sys

import pytest

WITHOUT_RESOURCE = """
import sys

import pytest
sys.modules["resource"] = None  # as on Windows
import torch
import pinmem_core.training
from pinmem_core.training.throughput import Throughput, peak_memory
pace = Throughput(4, torch.device("cpu"))
pace.count()
assert pace.speed().memory_bytes == 0
assert pace.summary().endswith("images/s")
"""


@pytest.mark.slow
def test_training_needs_no_module_that_windows_lacks():
    subprocess.run([sys.executable, "-c", WITHOUT_RESOURCE], check=True)
