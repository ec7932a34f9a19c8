"""A failure or a death at any moment removes nothing that is worth having."""

import json
import multiprocessing
import os
import shutil

import pytest
from conftest import small_config

from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.data.prepared import PreparedDataset
from pinmem_core.errors import BusyError, ConfigError, DataError, MachineError, StoppedRunError
from pinmem_core.events import Metrics, Notice
from pinmem_core.files import (
    atomic_file,
    remove_leftovers,
    resumable_folder,
    staged_folder,
    write_atomic,
)
from pinmem_core.locks import hold_lock, lock_file
from pinmem_core.paths import dataset_root, find_run, newest_run, register_run, runs_root
from pinmem_core.training import resume, train

fork = multiprocessing.get_context("fork")


def config(**values):
    return small_config(**{"iterations": 4, "checkpoint__every": 2, "checkpoint__keep": 1} | values)


@pytest.fixture
def stopped(tmp_path):
    """A run that was stopped after two of four iterations."""
    asked = []

    def twice():
        asked.append(None)
        return len(asked) > 3  # twice while the memory is initialised

    with pytest.raises(StoppedRunError, match="at iteration 2"):
        train(config(), tmp_path / "run", stop=twice)
    return tmp_path / "run"


def snapshots(run):
    return sorted(path.name for path in (run / "snapshots").iterdir())


def warnings(events):
    return [e.message for e in events if isinstance(e, Notice) and e.warning]


def test_a_snapshot_outlives_a_disk_without_room_for_the_checkpoint(tmp_path, monkeypatch):
    def full(*_, **__):
        raise MachineError("cannot write the checkpoint: No space left on device.")

    with monkeypatch.context() as patch:
        patch.setattr("pinmem_core.training.run_folder.save_checkpoint", full)
        with pytest.raises(MachineError, match="No space left"):
            train(config(), tmp_path / "run")
    assert snapshots(tmp_path / "run") == ["00000002"]
    assert resume(tmp_path / "run").iterations == 4


def test_a_run_that_died_while_it_wrote_its_first_file_can_be_begun_again(tmp_path, monkeypatch):
    run = tmp_path / "run"

    def die(*_):
        os._exit(9)  # as SIGKILL does: nothing is cleaned up

    def begin() -> None:
        monkeypatch.setattr("pathlib.Path.replace", die)
        train(config(iterations=1), run)

    prepare_synthetic(["toy"])
    child = fork.Process(target=begin)
    child.start()
    child.join()
    assert child.exitcode == 9 and any(path.suffix == ".part" for path in run.iterdir())
    assert train(config(iterations=1), run).iterations == 1
    assert not list(run.glob(".*"))


def test_a_file_that_is_no_half_written_one_of_pinmem_keeps_a_run_out(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".notes.part").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        train(config(), tmp_path / "run")
    assert (tmp_path / "run" / ".notes.part").read_text() == "mine"


def test_a_resume_that_fails_removes_nothing(stopped):
    shutil.rmtree(stopped / "checkpoint")
    samples = stopped / "samples.json"
    whole = samples.read_text()
    samples.write_text(json.dumps({}))
    with pytest.raises(DataError, match="samples differ from those"):
        resume(stopped)
    assert snapshots(stopped) == ["00000002"] and (stopped / "metrics.jsonl").exists()
    samples.write_text(whole)
    assert resume(stopped).iterations == 4


def relabel() -> None:
    """Prepare the toy dataset as it was, but for one label."""
    toy = PreparedDataset.open("toy")
    summary = toy.root / "dataset.json"
    said = json.loads(summary.read_text())
    write_atomic(summary, json.dumps(said | {"digest": "0" * 64}).encode())


def test_a_run_is_not_resumed_on_other_labels(stopped):
    samples = stopped / "samples.json"
    said = json.loads(samples.read_text())
    assert said["digests"] == {"toy": PreparedDataset.open("toy").summary["digest"]}
    relabel()
    with pytest.raises(DataError, match="the samples differ from those"):
        resume(stopped)
    assert snapshots(stopped) == ["00000002"]
    del said["digests"]  # of an older version
    samples.write_text(json.dumps(said))
    assert resume(stopped).iterations == 4


def test_a_dataset_that_is_relabelled_in_mid_run_spoils_no_snapshot(tmp_path):
    def hear(event) -> None:
        if isinstance(event, Metrics) and event.iteration == 3:
            relabel()

    with pytest.raises(DataError, match="toy was prepared with other labels while the run trained"):
        train(config(), tmp_path / "run", on_event=hear)
    assert snapshots(tmp_path / "run") == ["00000002"]


@pytest.mark.parametrize(
    "torn",
    [
        b"",
        *(pytest.param(b, marks=pytest.mark.slow) for b in (b'{"train": {', b"[" * 9999, b"\xff")),
    ],
)
def test_a_torn_list_of_samples_is_named_and_written_anew(stopped, torn):
    samples = stopped / "samples.json"
    whole = samples.read_bytes()
    samples.write_bytes(torn)
    (stopped / "metrics.jsonl").write_bytes(b"torn")
    events = []
    assert resume(stopped, on_event=events.append).iterations == 4
    assert ["samples.json cannot be read" in text for text in warnings(events)] == [True]
    assert samples.read_bytes() == whole


def test_a_damaged_later_snapshot_does_not_displace_an_intact_one(stopped):
    later = stopped / "snapshots" / "00000004"
    later.mkdir()
    (later / "manifest.json").write_text("{")
    (stopped / "snapshots" / "2 (copy)").mkdir()
    (stopped / "snapshots" / ".notes").write_text("")
    asked = []

    def once():
        asked.append(None)
        return True

    with pytest.raises(StoppedRunError, match="at iteration 3"):
        resume(stopped, stop=once)
    assert snapshots(stopped) == [".notes", "00000003", "00000004", "2 (copy)"]
    assert resume(stopped).iterations == 4


@pytest.mark.parametrize(
    "change",
    [
        {"iteration": 3},
        pytest.param({"iteration": "2"}, marks=pytest.mark.slow),
        pytest.param({"files": {}}, marks=pytest.mark.slow),
        pytest.param({"files": {"../../config.json": [1, "x"]}}, marks=pytest.mark.slow),
        pytest.param({"files": [1]}, marks=pytest.mark.slow),
        pytest.param({"logged": -1}, marks=pytest.mark.slow),
        pytest.param({"logged": 10**30}, marks=pytest.mark.slow),
        pytest.param({"processes": True}, marks=pytest.mark.slow),
        pytest.param({"scaler": None}, marks=pytest.mark.slow),
        pytest.param({"more": 1}, marks=pytest.mark.slow),
    ],
)
def test_a_manifest_that_is_not_of_its_snapshot_is_passed_over(stopped, change):
    manifest = stopped / "snapshots" / "00000002" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    events = []
    with pytest.raises(StoppedRunError):
        resume(stopped, on_event=events.append, stop=lambda: True)
    assert "00000002 is damaged and skipped" in warnings(events)[0]
    assert "00000002" in snapshots(stopped)


def test_a_snapshot_of_another_network_is_refused(stopped):
    path = stopped / "config.json"
    settings = json.loads(path.read_text())
    settings["model"]["feature_dim"] = 24
    path.write_text(json.dumps(settings))
    with pytest.raises(DataError, match="does not fit the run's configuration"):
        resume(stopped)
    assert snapshots(stopped) == ["00000002"]


def test_a_folder_is_there_at_every_moment_of_its_replacement(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    rename = type(folder).rename

    def watched(self, target):
        result = rename(self, target)
        assert folder.exists()
        return result

    monkeypatch.setattr(type(folder), "rename", watched)
    for write in (staged_folder, resumable_folder):
        with write(folder) as work:
            (work / "new").write_text(write.__name__)
        assert (folder / "new").read_text() == write.__name__
    assert [path.name for path in tmp_path.iterdir() if path != tmp_path / "home"] == ["data"]


def without_exchange(*_):
    raise OSError


def test_without_an_exchange_a_folder_comes_back_on_the_next_access(tmp_path, monkeypatch):
    monkeypatch.setattr("pinmem_core.files.ctypes.CDLL", without_exchange)
    prepare_synthetic(["toy"])
    root = dataset_root("toy")
    child = fork.Process(target=_die_between_two_renames, args=(root,))
    child.start()
    child.join()
    assert child.exitcode == 9 and not root.exists()
    assert (dataset_root("toy") / "dataset.json").exists()
    remove_leftovers(root)
    assert [path.name for path in root.parent.iterdir()] == ["toy"]
    with staged_folder(root) as staging:
        (staging / "new").touch()
    assert [path.name for path in root.iterdir()] == ["new"]


def _die_between_two_renames(folder) -> None:
    rename = type(folder).rename

    def dying(self, target):
        rename(self, target)
        if self == folder:
            os._exit(9)

    type(folder).rename = dying
    with staged_folder(folder) as staging:
        (staging / "new").touch()


def test_a_run_and_its_checkpoint_come_back_too(stopped):
    (stopped / "checkpoint").rename(stopped / ".checkpoint.0123456789abcdef.old")
    stopped.rename(stopped.with_name(".run.0123456789abcdef.old"))
    assert (find_run(str(stopped)) / "config.json").exists()
    assert resume(stopped).checkpoint.exists()


def test_processes_with_equal_numbers_use_other_temporary_names(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    names = fork.SimpleQueue()  # a Queue would ask for the process number

    def name() -> None:
        with (
            atomic_file(tmp_path / "mask.png") as partial,
            staged_folder(tmp_path / "x") as staging,
        ):
            partial.touch()
            names.put((partial.name, staging.name))

    children = [fork.Process(target=name) for _ in range(3)]
    for child in children:
        child.start()
        child.join()
    seen = [names.get() for _ in children]
    assert len({name for pair in seen for name in pair}) == 6


@pytest.mark.slow
def test_two_homes_do_not_resume_one_run_together(stopped, tmp_path, monkeypatch):
    with hold_lock(stopped / ".lock", "the run"):
        for home in ("one", "two"):
            monkeypatch.setenv("PINMEM_HOME", str(tmp_path / home))
            with pytest.raises(BusyError, match="another pinmem process is using the run"):
                resume(stopped)
    monkeypatch.undo()


@pytest.mark.parametrize("name", ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EIO"])
def test_a_disk_without_locks_is_not_taken_for_another_process(tmp_path, monkeypatch, name):
    def without(*_):
        raise OSError(getattr(__import__("errno"), name), "no locks")

    monkeypatch.setattr("fcntl.flock", without)
    events = []
    with hold_lock(lock_file(tmp_path / "data"), "the dataset data", events.append):
        pass
    assert "has no locks (no locks)" in warnings(events)[0]


def test_a_lock_ends_with_its_process_though_its_children_live(tmp_path):
    lock = tmp_path / "made" / ".lock"

    def take() -> None:
        with hold_lock(lock, "it"):
            ready.send(fork.Process(target=sleep.wait, daemon=False).start())
            os._exit(0)

    ready, heard = fork.Pipe()
    sleep = fork.Event()
    child = fork.Process(target=take)
    child.start()
    assert heard.recv() is None
    child.join()
    with hold_lock(lock, "it"):
        pass
    sleep.set()
    assert lock.parent.exists() and not lock.exists()


def test_a_lock_leaves_nothing(tmp_path):
    with hold_lock(tmp_path / "made" / ".lock", "it"):
        assert (tmp_path / "made" / ".lock").exists()
    assert not (tmp_path / "made").exists()


def test_odd_and_torn_lines_hide_no_run(tmp_path):
    (tmp_path / "run").mkdir()
    runs_root().mkdir(parents=True)
    odd = (
        b'\xff\n[1]\n{"run": 3}\n{"run": "\\u0000"}\n{"ran": 1}\n' + b"[" * 5000 + b'\n{"run": "/to'
    )
    (runs_root() / "finished.jsonl").write_bytes(odd)
    with pytest.raises(DataError, match="no trained model"):
        newest_run()
    register_run(tmp_path / "run")
    assert newest_run() == tmp_path / "run"
