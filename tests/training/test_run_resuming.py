"""A run that is stopped or killed, and resumed, ends as one that was left in peace."""

import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PLUGINS, Result, small_config

from pinmem_cli.output import Output
from pinmem_cli.signals import stopping
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.data.prepared import PreparedDataset
from pinmem_core.errors import ConfigError, DataError, MachineError, StoppedRunError
from pinmem_core.events import Metrics, Notice, Progress
from pinmem_core.locks import hold_lock
from pinmem_core.paths import runs_root
from pinmem_core.training import resume, train
from pinmem_core.training.run_folder import RunFolder

ITERATIONS = 6


def config(**values):
    return small_config(iterations=ITERATIONS, checkpoint__every=2, evaluation__every=3, **values)


def state(run: Path) -> dict[str, bytes]:
    """What has to be equal to the last bit: everything but the older snapshots."""
    newest = max((run / "snapshots").iterdir())
    assert newest.name == f"{ITERATIONS:08}"
    files = [run / name for name in ("metrics.jsonl", "samples.json", "scores.json", "config.json")]
    files += [*(run / "checkpoint").iterdir(), *newest.iterdir()]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.fixture
def straight(tmp_path):
    return state(train(config(), tmp_path / "straight").run)


class StopAfter:
    """Hears of the progress, and says stop after the iteration `number`."""

    def __init__(self, number: int) -> None:
        self.number, self.done = number, 0

    def hear(self, event) -> None:
        if isinstance(event, Progress) and event.task == "training":
            self.done = event.done

    def __call__(self) -> bool:
        return self.done >= self.number


def stopped_run(run: Path, number: int = 5, **values) -> Path:
    stop = StopAfter(number)
    with pytest.raises(StoppedRunError, match=f"at iteration {number}/{ITERATIONS}"):
        train(config(**values), run, stop=stop, on_event=stop.hear)
    return run


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [
        ("pinmem", "sgd"),
        *(
            pytest.param(*names, marks=pytest.mark.slow)
            for names in (
                ("aggregate", "sgd"),
                ("aggregate", "adamw"),
                ("mldg", "sgd"),
                ("consistency", "signed"),
            )
        ),
    ],
)
def test_stopped_and_resumed_is_bit_equal_to_straight(tmp_path, method, optimizer):
    values = {"method": method, "optim__name": optimizer}
    straight = state(train(config(**values), tmp_path / "straight").run)
    run = stopped_run(tmp_path / "run", 3, **values)
    assert not (run / "scores.json").exists()
    events = []
    result = resume(run, on_event=events.append)
    assert [e.iteration for e in events if isinstance(e, Metrics) and "lr" in e.values] == [4, 5, 6]
    assert result.scores and state(run) == straight


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path, straight):
    """The child process takes some iterations and dies without a chance to do anything."""
    run, dice = tmp_path / "run", random.Random(0)
    fork = multiprocessing.get_context("fork")
    kills = 0
    while kills < 20:
        child = fork.Process(target=_train_or_resume, args=(run,))
        child.start()
        child.join(dice.random() * 0.5)
        kills += child.is_alive()
        child.kill()
        child.join()
        if (run / "scores.json").exists():
            assert state(run) == straight
            run = tmp_path / f"run{kills}"
    if not (run / "scores.json").exists():
        _train_or_resume(run)
    assert state(run) == straight


def _train_or_resume(run: Path) -> None:
    if (run / "config.json").exists():
        resume(run)
    else:
        train(config(), run)


def _command(*arguments: str) -> list[str]:
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL);"  # whatever runs the tests
        "import pinmem_core.data.cards as d, pinmem_core.models.backbones as t, sys;"
        f"d.__path__.append({str(PLUGINS / 'cards')!r});"
        f"t.__path__.append({str(PLUGINS / 'backbones')!r});"
        "from pinmem_cli.app import main; main()"
    )
    return [sys.executable, "-c", code, *arguments]


LONG = """
    --sources toy:red,toy:blue --device cpu --iterations 100000 --batch 2 --crop 64
    --set model.backbone=tiny --set model.feature_dim=16 --set model.memory.init_batches=1
    --set log_every=1
""".split()  # noqa: SIM905


def test_a_signal_amid_a_print_is_heeded_all_the_same(monkeypatch):
    def reentrant(*_):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    monkeypatch.setattr(Output, "note", reentrant)
    with stopping(Output(as_json=False, quiet=False)) as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop() and stop.exit_code == 143


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)],
)
def test_a_signal_saves_and_exits_and_the_run_can_go_on(sent, code, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    process = subprocess.Popen(_command("train", *LONG), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("iteration 3 "):
            break
    process.send_signal(sent)
    told = process.stderr.read()
    assert process.wait(30) == code
    assert "stopped at iteration" in told and "pinmem train --resume" in told
    (run,) = [path for path in runs_root().iterdir() if path.is_dir()]
    assert len(list((run / "snapshots").iterdir())) == 1
    process = subprocess.Popen(
        _command("train", "--resume", "auto"), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert f"run: {run}" in process.stderr.readline()
    assert "resuming at iteration" in process.stderr.readline()
    process.stderr.readline()
    process.send_signal(sent)
    process.stderr.readline()
    process.send_signal(sent)
    process.stderr.read()
    assert process.wait(30) in (code, -sent)


@pytest.mark.parametrize(
    "sent",
    [
        [signal.SIGHUP, signal.SIGHUP, signal.SIGTERM],  # a shell whose terminal closes
        [signal.SIGINT, signal.SIGINT],  # Ctrl-C of a terminal in which torchrun runs
        [signal.SIGTERM, signal.SIGHUP],  # systemd
    ],
)
def test_several_signals_of_one_cause_are_one(sent):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever runs the tests
    try:
        with stopping(Output(as_json=False, quiet=False)) as stop:
            for number in sent:
                signal.raise_signal(number)
            assert stop() and stop.signal == sent[0]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_later_signal_ends_a_run_at_once_but_a_closed_terminal_does_not(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stopping(Output(as_json=False, quiet=False)):
            signal.raise_signal(signal.SIGTERM)
            clock[0] = 5.0
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_nohup_is_heeded():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping(Output(as_json=False, quiet=False)) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_closed_terminal_saves_the_run(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ours, theirs = os.openpty()
    process = subprocess.Popen(_command("train", *LONG), stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    while not list(runs_root().glob("*/metrics.jsonl")):
        os.read(ours, 1000)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 143
    (run,) = [path for path in runs_root().iterdir() if path.is_dir()]
    assert len(list((run / "snapshots").iterdir())) == 1


@pytest.mark.slow
def test_a_run_saves_by_the_clock_too_which_changes_nothing(tmp_path, monkeypatch):
    straight = train(config(checkpoint__minutes=None), tmp_path / "straight").run
    saves = []
    save = RunFolder.save

    def saving(self, done, step):
        saves.append(done)
        save(self, done, step)

    monkeypatch.setattr(RunFolder, "save", saving)
    clock = itertools.count(0, 61)
    monkeypatch.setattr("pinmem_core.training.trainer.time.monotonic", lambda: next(clock))
    run = train(
        small_config(iterations=ITERATIONS, checkpoint__minutes=1, evaluation__every=3),
        tmp_path / "run",
    ).run
    assert saves == [1, 2, 3, 4, 5, 6]
    for name in ("metrics.jsonl", "checkpoint/model.safetensors", "scores.json"):
        assert (run / name).read_bytes() == (straight / name).read_bytes()


@pytest.mark.slow
def test_a_damaged_snapshot_is_named_and_passed_over(tmp_path, straight):
    run = stopped_run(tmp_path / "run")
    newest = max((run / "snapshots").iterdir())
    (newest / "optimizer.safetensors").write_bytes(b"torn")
    events = []
    resume(run, on_event=events.append)
    told = [e.message for e in events if isinstance(e, Notice) and e.warning]
    assert told == [
        f"{newest} is damaged and skipped: optimizer.safetensors was changed after it was written"
    ]
    assert state(run) == straight


@pytest.mark.slow
def test_without_any_snapshot_a_run_begins_anew(tmp_path, straight):
    run = stopped_run(tmp_path / "run")
    for folder in (run / "snapshots").iterdir():
        (folder / "manifest.json").write_text("{")
    resume(run)
    assert state(run) == straight


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, 3])
def test_only_the_newest_snapshots_are_kept(tmp_path, keep):
    run = train(config(checkpoint__keep=keep), tmp_path / "run").run
    kept = sorted(int(folder.name) for folder in (run / "snapshots").iterdir())
    assert kept == [2, 4, 6][-keep:]


def test_other_samples_than_it_began_with_are_refused(tmp_path):
    run = stopped_run(tmp_path / "run")
    manifest = PreparedDataset.open("toy").manifest
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(DataError, match="samples differ from those"):
        resume(run)
    assert (run / "checkpoint").exists()


def test_other_settings_than_it_began_with_are_refused(tmp_path):
    """Fewer iterations than are done would end a run at once, and score weights of a later one."""
    run = stopped_run(tmp_path / "run")
    text = (run / "config.json").read_text()
    for old, new in ((f'"iterations": {ITERATIONS}', '"iterations": 1'), ('"lr": ', '"lr": 1')):
        assert old in text
        (run / "config.json").write_text(text.replace(old, new))
        with pytest.raises(DataError, match=r"trained with another '(iterations|optim\.lr)'"):
            resume(run)
    (run / "config.json").write_text(text.replace('"log_every": 1', '"log_every": 2'))
    for manifest in (run / "snapshots").glob("*/manifest.json"):  # as of a version without a key
        snapshot = json.loads(manifest.read_text())
        del snapshot["settings"]["optim"]["initial_share"]
        manifest.write_text(json.dumps(snapshot))
    assert resume(run).iterations == ITERATIONS


@pytest.mark.slow
def test_what_cannot_be_resumed_is_told(tmp_path):
    run = train(small_config(iterations=1), tmp_path / "run").run
    with pytest.raises(ConfigError, match="is already finished"):
        resume(run)
    with pytest.raises(DataError, match="is not a run"):
        resume(tmp_path)
    other = stopped_run(tmp_path / "other")
    with hold_lock(other / ".lock", "it"), pytest.raises(MachineError, match="another pinmem"):
        resume(other)
    assert Result("train", "--resume", "nothing").code == 3
    assert Result("train", "--resume", "auto").code == 3
    refused = Result("train", "--resume", str(other), "--iterations", "9")
    assert refused.code == 2 and "would do nothing" in refused.err
    resumed = Result("train", "--resume", str(other), "--json")
    assert resumed.code == 0 and resumed.json["iterations"] == ITERATIONS


def test_stopping_before_the_first_iteration_leaves_nothing(tmp_path):
    prepare_synthetic(["toy"])
    with pytest.raises(StoppedRunError, match="nothing is saved"):
        train(config(), tmp_path / "run", stop=lambda: True)
    assert not (tmp_path / "run").exists()
