"""A few deaths of each command; `python tests/torture/run.py` has two hundred."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Result

from pinmem_core.checkpoints.hub import STARTER_FOLDER, checkpoint_of

RUN = Path(__file__).parent / "torture" / "run.py"


@pytest.mark.slow
def test_nothing_is_lost_by_a_few_deaths():
    """About forty seconds of one core."""
    scenes = "prepare, anew;train --resume;predict"
    few = ("--kills", "7", "--every", "19", "--no-processes", "--scenes", scenes)
    result = subprocess.run(
        [sys.executable, RUN, *few], capture_output=True, text=True, check=False, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith("| `")]
    assert len(rows) == 9 and all(row.endswith("| 0 | 0 |") for row in rows)


@pytest.mark.exhaustive
def test_nothing_is_lost_by_deaths_and_odd_situations():
    command = [sys.executable, RUN, "--kills", "7", "--every", "9"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("as it should be") == 6


def test_without_a_home_the_starter_is_found_and_the_rest_says_what_to_set(monkeypatch, tmp_path):
    pwd = pytest.importorskip("pwd")

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "PINMEM_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert checkpoint_of("starter") == STARTER_FOLDER
    assert checkpoint_of(str(tmp_path)) == tmp_path
    result = Result("data", "list")
    assert result.code == 5 and "PINMEM_HOME" in result.err
    assert not list(tmp_path.iterdir())
