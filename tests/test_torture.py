"""A few deaths of each command; `python tests/torture/run.py` has two hundred."""

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "torture" / "run.py"


@pytest.mark.slow
def test_nothing_is_lost_by_deaths_and_odd_situations():
    command = [sys.executable, RUN, "--kills", "7", "--every", "9"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("as it should be") == 6
