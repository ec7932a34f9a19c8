"""Threads of torch sleep between operations where other processes are busy, and only there."""

import os
import subprocess
import sys

import pytest

from pinmem_cli.idle_threads import Ticks, let_idle_threads_sleep, others_are_busy

BEFORE = Ticks(4, 1000, 5000)
ASK = """
import os, sys
import pinmem_cli.app
from pinmem_cli.idle_threads import let_idle_threads_sleep
assert "torch" not in sys.modules  # it reads the policy when it is imported
let_idle_threads_sleep()
print(os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.parametrize(
    ("idle", "busy"),
    [(0, True), (60, True), (72, False), (75, False), (100, False)],
)
def test_what_this_process_used_is_not_counted(idle, busy):
    """Of 4 processors and 100 ticks, 25 are this process's."""
    assert others_are_busy(BEFORE, Ticks(4, 1000 + idle, 5100)) is busy


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Ticks(0, 0, 0), Ticks(0, 0, 0)),  # the system does not say
        (Ticks(1, 0, 0), Ticks(1, 0, 100)),  # one processor: one thread
        (BEFORE, Ticks(4, 1000, 5010)),  # too short to tell
    ],
)
def test_without_a_sign_nothing_is_chosen(before, after):
    assert not others_are_busy(before, after)


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_has_chosen_stays(name):
    environment = {name: "17"}
    let_idle_threads_sleep(environment)
    assert environment == {name: "17"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/stat")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one processor has one thread")
def test_beside_busy_processes_threads_sleep():
    loops = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in os.sched_getaffinity(0)
    ]
    try:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
        asked = subprocess.run(
            [sys.executable, "-c", ASK], capture_output=True, text=True, check=True, env=environment
        )
        assert asked.stdout.strip() == "passive"
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
