"""What a run writes for TensorBoard, W&B and MLflow, as their own readers see it."""

import io
import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import small_config
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import SummaryWriter

import pinmem_core.training.loggers
from pinmem_core.errors import ConfigError, MachineError
from pinmem_core.events import Images, Metrics, Notice, Progress, RunStarted
from pinmem_core.overrides import validate, with_overrides
from pinmem_core.training import train
from pinmem_core.training.loggers import loggers
from pinmem_core.training.loggers.mlflow import MLflow
from pinmem_core.training.loggers.tensorboard import TensorBoard
from pinmem_core.training.loggers.wandb import WandB
from pinmem_core.training.setup import resolve


@pytest.fixture(autouse=True)
def _files_in_order(monkeypatch):
    """Number the files of a test from 0: by their names, number 10 would come before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def _read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard")).Reload()


def _scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in _read(folder).Scalars(name)]


def test_metrics_are_scalars_at_their_iteration_and_other_events_are_none(tmp_path):
    with TensorBoard(tmp_path) as board:
        board(Metrics(10, {"inner/seg": 0.5, "lr": 0.25}))
        board(Progress("training", 10, 100))
        board(Notice("hello"))
        board(Metrics(20, {"inner/seg": 0.125, "redrawn": 3}))
    assert _scalars(tmp_path, "inner/seg") == [(10, 0.5), (20, 0.125)]
    assert _scalars(tmp_path, "lr") == [(10, 0.25)]
    assert _scalars(tmp_path, "redrawn") == [(20, 3.0)]
    assert _read(tmp_path).Tags()["scalars"] == ["inner/seg", "lr", "redrawn"]


def test_events_are_on_disk_at_once(tmp_path):
    board = TensorBoard(tmp_path / "new" / "folder")
    board(Metrics(1, {"lr": 0.5}))
    assert _scalars(tmp_path / "new" / "folder", "lr") == [(1, 0.5)]
    board(Images(1, {"memory": np.zeros((2, 2, 3), np.uint8)}))
    assert _read(tmp_path / "new" / "folder").Tags()["images"] == ["memory"]
    board.close()


def test_a_resumed_run_shows_each_iteration_once(tmp_path):
    with TensorBoard(tmp_path) as board:
        for iteration in range(1, 11):
            board(Metrics(iteration, {"lr": 1.0}))
    with TensorBoard(tmp_path, after=6) as board:
        for iteration in range(7, 9):
            board(Metrics(iteration, {"lr": 2.0}))
    assert _scalars(tmp_path, "lr") == [*((n, 1.0) for n in range(1, 7)), (7, 2.0), (8, 2.0)]


def test_a_run_resumed_without_a_snapshot_begins_anew(tmp_path):
    for value in (1.0, 2.0):
        with TensorBoard(tmp_path) as board:
            board(Metrics(1, {"lr": value}))
    assert _scalars(tmp_path, "lr") == [(1, 2.0)]


def test_pictures_keep_every_pixel(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    with TensorBoard(tmp_path) as board:
        board(Images(30, {"prediction/gtav": picture, "memory": picture[::-1]}))
    reader = _read(tmp_path)
    assert sorted(reader.Tags()["images"]) == ["memory", "prediction/gtav"]
    (shown,) = reader.Images("prediction/gtav")
    assert (shown.step, shown.width, shown.height) == (30, 7, 5)
    decoded = np.asarray(Image.open(io.BytesIO(shown.encoded_image_string)))
    assert np.array_equal(decoded, picture)


def test_the_file_is_finished_when_the_block_fails(tmp_path):
    before = threading.active_count()
    with pytest.raises(KeyError), TensorBoard(tmp_path) as board:
        board(Metrics(1, {"lr": 0.5}))
        raise KeyError
    assert threading.active_count() == before
    assert _scalars(tmp_path, "lr") == [(1, 0.5)]


@pytest.mark.parametrize(
    ("name", "module", "title"),
    [
        ("tensorboard", "torch.utils.tensorboard", "TensorBoard"),
        ("wandb", "wandb", "W&B"),
        ("mlflow", "mlflow", "MLflow"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, name, module, title):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MachineError, match=f"{title}'s Python package") as caught:
        loggers.get(name)(tmp_path)
    assert caught.value.hint == f"pip install 'pinmem[{name}]'"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(MachineError, match=f"cannot write {tmp_path}/tensorboard: "):
        TensorBoard(tmp_path)


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    with TensorBoard(tmp_path) as board:

        def full(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(SummaryWriter, "flush", full)
            with pytest.raises(MachineError, match=r"cannot write .*tensorboard: .*No space left"):
                board(Metrics(1, {"lr": 0.5}))
            with pytest.raises(MachineError, match="No space left"):
                board(Images(1, {"memory": np.zeros((2, 2, 3), np.uint8)}))


def test_a_comma_separates_loggers_and_an_old_key_is_explained():
    assert validate(with_overrides({}, ["logger=tensorboard,wandb"])).logger == (
        "tensorboard",
        "wandb",
    )
    with pytest.raises(ConfigError) as caught:
        validate({"tensorboard": True})
    assert caught.value.hint == "It is called 'logger=tensorboard' now."
    with pytest.raises(ConfigError, match="unknown logger 'tensorbord'"):
        resolve(small_config(logger=["tensorbord"]))


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_same_mlflow_run(tmp_path):
    import mlflow

    picture = np.zeros((2, 3, 3), np.uint8)
    with MLflow(tmp_path) as log:
        log(RunStarted("run", {"optim": {"lr": 0.1}, "sources": ["a"]}))
        log(Metrics(1, {"outer/seg": 0.5}))
    with MLflow(tmp_path, after=1) as log:
        log(RunStarted("run", {"optim": {"lr": 0.1}, "sources": ["a"]}))
        log(Metrics(2, {"outer/seg": 0.25, "iou/toy:red/road": 1.0}))
        log(Images(2, {"toy:red": picture}))
        log(Progress("training", 1, 2))
    client = mlflow.MlflowClient(f"file://{tmp_path / 'mlflow'}")
    (run,) = client.search_runs([client.get_experiment_by_name("pinmem").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["optim.lr"] == "0.1"
    values = client.get_metric_history(run.info.run_id, "outer/seg")
    assert [(value.step, value.value) for value in values] == [(1, 0.5), (2, 0.25)]
    assert run.data.metrics["iou/toy_red/road"] == 1.0
    assert len(list(tmp_path.rglob("images/toy_red/00000002.png"))) == 1


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for after in (0, 1):
        time.sleep(1.1)  # W&B names folders by the second
        with WandB(tmp_path, after) as log:
            log(RunStarted("run", {"optim": {"lr": 0.1}}))
            log(Metrics(after + 1, {"outer/seg": 0.5}))
            log(Images(after + 1, {"toy:red": np.zeros((2, 3, 3), np.uint8)}))
    identity = (tmp_path / "wandb-id").read_text().strip()
    files = list(tmp_path.rglob("run-*.wandb"))
    assert [file.name for file in files] == [f"run-{identity}.wandb"] * 2
    assert all(b"outer/seg" in file.read_bytes() for file in files)


@pytest.mark.slow
def test_a_run_logs_its_configuration_metrics_and_pictures(tmp_path):
    config = small_config(iterations=2, evaluation__every=1, logger="tensorboard,lines")
    events = []
    run = train(config, tmp_path / "run", on_event=events.append).run
    assert _read(run).Tags()["images"] == ["toy:red@val", "toy:blue@val"]
    assert {"lr", "inner/seg", "val/toy:red@val"} <= set(_read(run).Tags()["scalars"])
    kinds = [line.split()[0] for line in (run / "events.txt").read_text().splitlines()]
    assert kinds == ["start", "metrics", "metrics", "images", "metrics"]
    started, *_ = (event for event in events if isinstance(event, RunStarted))
    assert started.config == json.loads((run / "config.json").read_text())


BROKEN = """
from pinmem_core.events import Metrics
from pinmem_core.training.loggers.base import Logger
class Broken(Logger):
    def __init__(self, run, after=0):
        pass
    def __call__(self, event):
        if isinstance(event, Metrics) and event.iteration == 2:
            raise ConnectionError("the server is gone")
    def close(self):
        raise ValueError("not flushed")
LOGGERS = {"broken": Broken}
"""


def test_a_logger_that_fails_does_not_end_the_run(tmp_path, add_plugin):
    add_plugin(pinmem_core.training.loggers, BROKEN)
    events = []
    config = small_config(method="aggregate", logger=["broken", "lines", "broken"])
    result = train(config, tmp_path / "run", on_event=events.append)
    assert result.iterations == 3
    warnings = [e.message for e in events if isinstance(e, Notice) and "broken" in e.message]
    assert warnings == [
        "the logger 'broken' failed (ConnectionError: the server is gone); it gets no more events; "
        "'metrics.jsonl' has the metrics",
        "the logger 'broken' failed (ValueError: not flushed); its last events may be lost",
    ]
    assert "metrics 3 " in (tmp_path / "run" / "events.txt").read_text()


def test_a_logger_that_fails_at_the_end_does_not_fail_the_run(tmp_path, add_plugin):
    add_plugin(pinmem_core.training.loggers, BROKEN)
    events = []
    config = small_config(method="aggregate", logger=["broken"], iterations=1)
    train(config, tmp_path / "run", on_event=events.append)
    warnings = [e.message for e in events if isinstance(e, Notice) and "broken" in e.message]
    assert warnings == [
        "the logger 'broken' failed (ValueError: not flushed); its last events may be lost"
    ]
