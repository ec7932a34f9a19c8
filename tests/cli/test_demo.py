"""The demo's trainings end with it."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from pinmem_cli import demo
from pinmem_cli.signals import deferred

fork = multiprocessing.get_context("fork")


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)]
)
def test_a_signal_ends_the_trainings_too(tmp_path, monkeypatch, sent, code):
    stub = tmp_path / "python"
    stub.write_text(f'#!/bin/sh\nmkdir -p "{tmp_path}/begun/$$"\nexec sleep 600\n')
    stub.chmod(0o755)
    begun = tmp_path / "begun"
    monkeypatch.setattr(sys, "executable", str(stub))
    monkeypatch.setattr(sys, "argv", ["demo"])
    monkeypatch.setattr("pinmem_core.data.prepare.prepare_synthetic", lambda *_: None)

    def run() -> None:
        signal.signal(sent, signal.default_int_handler if code == 130 else signal.SIG_DFL)
        demo.main()

    child = fork.Process(target=run)
    child.start()
    while not begun.is_dir() or len(list(begun.iterdir())) < 2:
        time.sleep(0.01)
        assert child.is_alive()
    os.kill(child.pid, sent)
    child.join(60)
    assert child.exitcode == code
    deadline = time.monotonic() + 60
    while any(_is_running(int(path.name)) for path in begun.iterdir()):
        assert time.monotonic() < deadline, "a training outlives the demo"
        time.sleep(0.01)


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--recipe", 2)])
def test_the_demo_trains_nothing_where_it_is_given_an_option(monkeypatch, capsys, argument, code):
    monkeypatch.setattr(demo, "run_demo", lambda _: pytest.fail("the demo runs"))
    monkeypatch.setattr(sys, "argv", ["demo", argument])
    with pytest.raises(SystemExit) as ended:
        demo.main()
    shown = capsys.readouterr()
    assert ended.value.code == code
    assert "python -m pinmem_cli.demo" in shown.out + shown.err


def test_a_signal_waits_until_what_must_not_be_torn_is_done():
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    steps = []
    try:
        with pytest.raises(KeyboardInterrupt), deferred():
            signal.raise_signal(signal.SIGTERM)
            steps.append("whole")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert steps == ["whole"]


def _is_running(process: int) -> bool:
    """Return whether a process runs; one that has ended may wait for its parent to hear of it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
