"""Runs of a study at once, each in its own process."""

import io
import os
import re
import signal
from pathlib import Path

import pytest
from conftest import Result, camvid_folder
from rich.console import Console

from pinmem_cli.study_view import StudyView
from pinmem_core.data.catalog import get_card
from pinmem_core.data.prepare import prepare
from pinmem_core.errors import DataError, PinMemError, StoppedRunError
from pinmem_core.events import Metrics, Progress, Speed
from pinmem_core.study import Run, RunEvent, make_table, read_sweep, run_study
from pinmem_core.study.run import read_cost
from pinmem_core.study.sweep import report_path

DRIVES = "0006R0", "0016E5", "0001TP"
STUDY = """
title = "jobs"
recipe = "camvid"
seeds = [0, 1]
sources = ["camvid:0006R0", "camvid:0016E5"]
targets = ["camvid:0001TP"]
baseline = "plain"

[settings]
iterations = 6
batch = 2
device = "cpu"
init_weights = "none"
log_every = 1
"augmentation.crop" = 32
"model.backbone" = "resnet10"
"model.feature_dim" = 16
"model.memory.init_batches" = 1
"checkpoint.every" = 2

[variants.plain]
about = "all domains in one batch"
settings = { method = "aggregate" }

[variants.paper]
about = "as published"
"""


@pytest.fixture
def sweep_file(tmp_path):
    folder = camvid_folder(tmp_path / "raw", dict.fromkeys(DRIVES, 12))
    prepare(get_card("camvid"), [folder])
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


@pytest.mark.slow
def test_a_killed_process_loses_only_its_run_and_the_study_resumes_it(
    sweep_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sweep, folder = read_sweep(sweep_file), tmp_path / "study"
    killed, at_once, order = Run("", "paper", 0), set(), []
    active = set()

    def watch(of):
        if of.event == "started":
            active.add(of.run)
            order.append(of.run)
        elif of.event == "done" or isinstance(of.event, PinMemError):
            active.discard(of.run)
        at_once.add(len(active))
        if of.run == killed and isinstance(of.event, Metrics) and of.event.iteration == 3:
            (child,) = _processes_of(killed)
            os.kill(child, signal.SIGKILL)

    done = run_study(sweep, folder, jobs=2, on_run=watch)
    assert max(at_once) == 2 and len(order) == 4
    assert [*done.failed] == [killed] and done.elsewhere == 0
    assert done.failed[killed].message == "its process ended by signal 9."
    assert make_table(sweep, folder).rows["paper"].seeds == (1,)
    assert read_cost(folder, "plain", 0).jobs == 2 and read_cost(folder, "plain", 0).memory_bytes

    resumed = Result(
        "train", "--sweep", str(sweep_file), "-o", str(folder), "--jobs", "2", "--json"
    )
    assert resumed.code == 0 and resumed.json["failed"] == {}
    assert (
        "study: 2 variants x 2 seeds; 1 of 4 runs to train or to finish, 2 at once" in resumed.err
    )
    assert "resuming at iteration 2/6" in resumed.err
    assert resumed.json["variants"]["paper"]["seeds"] == [0, 1]


@pytest.mark.slow
def test_a_stop_saves_all_and_a_failing_run_leaves_the_others(sweep_file, tmp_path):
    broken = '[variants.broken]\nabout = "fails"\nsettings = { init_weights = "/absent.pth" }\n'
    sweep_file.write_text(STUDY.replace("[0, 1]", "[0]") + broken)
    sweep, folder = read_sweep(sweep_file), tmp_path / "study"
    trained = set()

    def watch(of):
        if isinstance(of.event, Progress) and of.event.task == "training":
            trained.add(of.run.variant)

    with pytest.raises(StoppedRunError, match="stopped; all runs are saved"):
        run_study(sweep, folder, jobs=2, on_run=watch, stop=lambda: "paper" in trained)
    assert (folder / "runs/paper-0/snapshots").exists()
    result = Result("train", "--sweep", str(sweep_file), "-o", str(folder), "--json")
    assert result.code == 2
    assert "error: broken-0: " in result.err and "absent.pth" in result.err
    assert [*result.json["failed"]] == ["broken-0"]
    assert report_path(folder, "paper", 0).exists() and [*result.json["variants"]] == [
        "plain",
        "paper",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_a_table_of_the_runs_and_a_file_plain_lines(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, highlight=False)
    runs = [Run("night", "plain", seed) for seed in (0, 1, 2)]
    with StudyView(console, dict(zip(runs, ("done", "absent", "absent"), strict=True))) as view:
        for event in (
            "started",
            Speed(2.5, 10),
            Progress("training", 3, 6),
            Metrics(3, {"train/total": 1.25, "lr": 0.1}),
        ):
            view.show_run(RunEvent(runs[1], event))
        view.show_run(RunEvent(runs[2], DataError("no data.")))
    shown = console.file.getvalue()
    assert "warning: night/plain-2 failed: no data." in shown
    line = "night/plain-1: iteration 3  train/total 1.250  2.5 images/s"
    cells = re.search(r"night/plain +done +50% +failed", shown)
    assert (bool(cells) and "3/6" in shown, line in shown) == (terminal, not terminal)


def test_jobs_are_for_studies():
    refused = Result("train", "--recipe", "demo", "--jobs", "2")
    assert refused.code == 2 and "--jobs is for the runs of a study" in refused.err


def _processes_of(run):
    """The processes whose open files include the lock of a run."""
    lock = f".{run.variant}-{run.seed}.lock"
    for process in Path("/proc").glob("[0-9]*"):
        try:
            held = any(str(fd.readlink()).endswith(lock) for fd in (process / "fd").iterdir())
        except OSError:
            continue
        if held:
            yield int(process.name)
