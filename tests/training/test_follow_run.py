"""What a run shows while it trains: its table, its pictures, and lines on the terminal."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Result, small_config
from PIL import Image

from pinmem_core.errors import StoppedRunError
from pinmem_core.events import Progress
from pinmem_core.training import train


@pytest.mark.slow
@pytest.mark.plots
def test_a_stopped_run_has_its_table_and_its_pictures(tmp_path):
    assert Result("data", "prepare", "toy").code == 0
    done = []

    def note(event: object) -> None:
        if isinstance(event, Progress) and event.task == "training":
            done.append(event.done)

    config = small_config(iterations=9, evaluation__every=1, evaluation__max_images=1)
    with pytest.raises(StoppedRunError):
        train(config, tmp_path / "run", on_event=note, stop=lambda: done == [1])
    lines = [*csv.DictReader((tmp_path / "run" / "results.csv").open())]
    assert [line["iteration"] for line in lines] == ["1", "1"]
    assert float(lines[0]["lr"]) > 0 and lines[1]["lr"] == ""
    assert 0 <= float(lines[1]["val/toy:red@val"]) <= 1
    pictures = {path.relative_to(tmp_path / "run") for path in (tmp_path / "run").rglob("*.png")}
    by_domain = {path for path in pictures if path.parent.name in ("predictions", "confusion")}
    assert pictures - by_domain == {Path(f"{n}.png") for n in ("losses", "classes", "memory")}
    assert len(by_domain) == 2 * 2
    for path in pictures:
        with Image.open(tmp_path / "run" / path) as picture:
            picture.load()


SHOW = """
from pinmem_cli.output import Output
from pinmem_core.events import Metrics, Progress, Speed
with Output().listening() as show:
    show(Speed(3.1, 512_000_000))
    for done in range(1, 101):
        show(Progress("training", done, 100))
        show(Metrics(done, {"outer/total": 1 / done}))
        if done == 50:
            show(Metrics(done, {"val/toy:red@val": 0.5}))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no pty")
def test_a_terminal_of_60_columns_keeps_a_history(tmp_path):
    import fcntl
    import pty
    import struct
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 60, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    run = subprocess.Popen(
        [sys.executable, "-c", SHOW],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**env, "TERM": "xterm"},
    )
    os.close(follower)
    shown = b""
    try:
        while part := os.read(leader, 65536):
            shown += part
    except OSError:  # the other end is closed
        pass
    assert run.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", shown.decode())
    lines = [line for part in text.splitlines() for line in part.split("\r")]
    history = [line for line in lines if line.startswith("iteration ")]
    tenths = [int(line.split()[1]) for line in history if "outer/total" in line]
    assert tenths == [*range(10, 100, 10), 100]
    assert sum("val/toy:red@val 0.500" in line for line in history) == 1
    bars = [line for line in lines if line.startswith("training")]
    assert bars and all(len(line.rstrip()) <= 60 for line in bars)
    assert any("/100" in line for line in bars)
