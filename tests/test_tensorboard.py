"""What a run writes for TensorBoard, as TensorBoard's own reader sees it."""

import io
import runpy
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from pinmem_core.errors import MachineError
from pinmem_core.events import Metrics, Notice, Progress
from pinmem_core.training import tensorboard
from pinmem_core.training.tensorboard import TensorBoard


@pytest.fixture(autouse=True)
def _files_in_order(monkeypatch):
    """Number the files of a test from 0: by their names, number 10 would come before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def _read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


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


def test_what_was_told_is_on_disk_at_once(tmp_path):
    board = TensorBoard(tmp_path / "new" / "folder")
    board(Metrics(1, {"lr": 0.5}))
    assert _scalars(tmp_path / "new" / "folder", "lr") == [(1, 0.5)]
    board.pictures(1, {"memory": np.zeros((2, 2, 3), np.uint8)})
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
        board.pictures(30, {"prediction/gtav": picture, "memory": picture[::-1]})
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


def test_a_missing_package_is_told_with_its_remedy_and_only_when_it_is_needed(
    tmp_path, monkeypatch
):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    board = runpy.run_path(tensorboard.__file__)["TensorBoard"]
    with pytest.raises(MachineError, match="TensorBoard's Python package") as caught:
        board(tmp_path / "board")
    assert caught.value.hint == "pip install 'pinmem[tensorboard]'"
    assert not (tmp_path / "board").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match=f"cannot write {tmp_path}/file: "):
        TensorBoard(tmp_path / "file")


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    with TensorBoard(tmp_path) as board:

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(board._writer, "flush", full)
        with pytest.raises(MachineError, match=f"cannot write {tmp_path}: .*No space left"):
            board(Metrics(1, {"lr": 0.5}))
        with pytest.raises(MachineError, match="No space left"):
            board.pictures(1, {"memory": np.zeros((2, 2, 3), np.uint8)})
