"""Whatever goes wrong in mid-run ends in one sentence, and the last checkpoint loads."""

import multiprocessing
import os
import resource
import signal

import pytest
import torch
from conftest import Result, small_config

from pinmem_core.data.batches import Batch
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.data.prepared import PreparedDataset
from pinmem_core.errors import DataError, MachineError, PinMemError
from pinmem_core.events import Metrics
from pinmem_core.methods import methods
from pinmem_core.models import load_checkpoint
from pinmem_core.training import resume, train
from pinmem_core.training.step import FiniteLossCheck, TrainStep


def config(**values):
    return small_config(**{"iterations": 8, "checkpoint__every": 2, **values})


def after(iteration: int, do):
    """Return a listener that does something once an iteration has ended."""

    def hear(event) -> None:
        if isinstance(event, Metrics) and event.iteration == iteration:
            do()

    return hear


def require_good_checkpoint(run, iteration: int) -> None:
    segmenter, about = load_checkpoint(run / "checkpoint")
    assert about["iteration"] == iteration
    assert all(value.isfinite().all() for value in segmenter.state_dict().values())


def one_sentence(error: PinMemError) -> bool:
    return "\n" not in error.message and error.message.endswith(".")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_data_file_deleted_in_mid_run(tmp_path, workers):
    prepare_synthetic(["toy"])

    def delete() -> None:
        for sample in PreparedDataset.open("toy").samples:
            sample.image.unlink()

    run = tmp_path / "run"
    with pytest.raises(DataError, match="does not exist") as error:
        train(config(workers=workers, iterations=40), run, on_event=after(3, delete))
    assert one_sentence(error.value)
    _, about = load_checkpoint(run / "checkpoint")
    assert about["iteration"] >= 2


def test_a_killed_loading_process(tmp_path):
    def kill() -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    run = tmp_path / "run"
    with pytest.raises(MachineError, match="loads images was killed") as error:
        train(config(workers=2, iterations=40), run, on_event=after(3, kill))
    assert one_sentence(error.value)
    load_checkpoint(run / "checkpoint")


def _train_on_a_disk_that_fills_up(run, outcome) -> None:
    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        train(config(), run, on_event=after(3, fill))
    except MachineError as error:
        outcome.put((error.message, error.hint))


def test_a_disk_that_is_full_when_the_run_saves(tmp_path):
    """No file may grow beyond 20 kB from the third iteration on, as far as the system goes."""
    fork = multiprocessing.get_context("fork")
    outcome, run = fork.Queue(), tmp_path / "run"
    child = fork.Process(target=_train_on_a_disk_that_fills_up, args=(run, outcome))
    child.start()
    message, _ = outcome.get(timeout=60)
    child.join()
    assert message.startswith("cannot write") and "File too large" in message
    require_good_checkpoint(run, 2)
    assert sorted(path.name for path in (run / "snapshots").iterdir()) == ["00000002"]
    assert resume(run).iterations == 8


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match="cannot write") as error:
        train(config(), tmp_path / "file" / "run")
    assert "\n" not in error.value.message
    done = Result(
        *("train", "--sources", "toy:red,toy:blue", "--device", "cpu"),
        *("--output", str(tmp_path / "file" / "run"), "--set", "model.backbone=tiny"),
    )
    assert done.code == 5 and "cannot write" in done.err


class Poisoned(TrainStep):
    """An iteration whose fifth batch holds a pixel that is no number."""

    def step(self, iteration: int, batch: Batch):
        if iteration == 4:
            batch.images[:, :, 0, 0, 0] = float("nan")
        return super().step(iteration, batch)


@pytest.mark.parametrize(
    "waits",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["read at once", "read when figures are logged"],
)
def test_a_loss_that_is_no_number(tmp_path, monkeypatch, waits):
    """On a GPU the verdict is read late: no step may be taken meanwhile."""

    class Poisoning(Poisoned):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            self.loss_check = FiniteLossCheck(torch.device("cpu"), deferred=waits)
            made.append(self)

    made: list[TrainStep] = []
    monkeypatch.setattr("pinmem_core.training.trainer.TrainStep", Poisoning)
    settings = {"log_every": 7, "checkpoint__every": 4, "model__memory__read": "softmax"}
    run = tmp_path / "run"
    with pytest.raises(PinMemError, match="not finite in iteration 5") as error:
        train(config(**settings), run)
    assert one_sentence(error.value)
    assert "inner: seg, aux, read, div, cls; outer: " in error.value.message
    assert error.value.message.count("toy:red/") == error.value.message.count("toy:blue/") == 2
    require_good_checkpoint(run, 4)
    saved, _ = load_checkpoint(run / "checkpoint")
    (iteration,) = made
    for name, parameter in iteration.segmenter.named_parameters():
        assert torch.equal(parameter, saved.get_parameter(name)), f"{name} has moved"
    monkeypatch.setattr("pinmem_core.training.trainer.TrainStep", TrainStep)
    assert resume(run).iterations == 8


def test_a_program_that_fails_in_a_way_nobody_thought_of(tmp_path, monkeypatch):
    """Even then the last checkpoint stays, and how to go on is told."""
    heard = []

    class Failing(methods.get("pinmem")):
        def refresh(self, context) -> None:
            super().refresh(context)
            if any(isinstance(e, Metrics) and e.iteration == 5 for e in heard):
                raise RuntimeError("out of order")

    monkeypatch.setattr("pinmem_core.training.step.methods.get", lambda name: Failing)
    run = tmp_path / "run"
    with pytest.raises(RuntimeError, match="out of order"):
        train(config(), run, on_event=heard.append)
    require_good_checkpoint(run, 4)
    assert "--resume" in heard[-1].message


def test_a_second_run_in_the_same_process_is_refused_while_the_first_one_trains(tmp_path):
    prepare_synthetic(["toy"])
    refused = []

    def train_another():
        with pytest.raises(MachineError, match="this process trains another run") as error:
            train(config(), tmp_path / "second")
        refused.append(error.value)

    train(config(), tmp_path / "first", on_event=after(2, train_another))
    assert one_sentence(refused[0])
    assert not (tmp_path / "second").exists()
    train(config(), tmp_path / "second")
