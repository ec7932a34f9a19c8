import json
import math

import numpy as np
import pytest
import torch
from conftest import camvid_folder, small_config
from safetensors.torch import load_file

from pinmem_core.checkpoints.runs import read_run
from pinmem_core.config import OptimConfig
from pinmem_core.data.catalog import get_card
from pinmem_core.data.prepare import prepare, prepare_synthetic
from pinmem_core.data.prepared import PreparedDataset
from pinmem_core.errors import ConfigError, DataError, PinMemError
from pinmem_core.events import Metrics, Notice, Progress
from pinmem_core.images import write_png
from pinmem_core.methods.losses import cross_entropy, divergence_loss
from pinmem_core.training import train
from pinmem_core.training.optim import inner_learning_rate, learning_rate


def test_losses_without_a_labelled_pixel_are_zero_not_nan():
    labels = torch.full((1, 4, 4), 255)
    logits = torch.randn(1, 19, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, labels)
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_divergence_is_the_mean_positive_cosine():
    slots = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    assert divergence_loss(slots).item() == pytest.approx(2 * 0.6 / 6)


def test_schedules():
    config = OptimConfig()
    assert learning_rate(config, 0, 10) == 0.01
    assert learning_rate(config, 1, 10) == 0.01 * math.exp(-9 / 120000)
    assert learning_rate(config, 1, 10) == learning_rate(config, 1, 99999)
    assert inner_learning_rate(config, 0, 10) == 0.001
    assert inner_learning_rate(config, 5, 10) == learning_rate(config, 5, 10) / 4
    poly = OptimConfig(schedule="polynomial")
    assert learning_rate(poly, 5, 10) == pytest.approx(0.01 * 0.5**0.9)


@pytest.mark.parametrize(
    "method", ["pinmem", *(pytest.param(m, marks=pytest.mark.slow) for m in ("mldg", "aggregate"))]
)
def test_two_identical_runs_are_bit_equal(tmp_path, method):
    config = small_config(method=method, targets=["toy:blue@all"], evaluation__every=2)
    events = []
    one = train(config, tmp_path / "one", on_event=events.append)
    two = train(config, tmp_path / "two")
    for name in ("metrics.jsonl", "scores.json", "config.json", "samples.json"):
        assert (one.run / name).read_bytes() == (two.run / name).read_bytes()
    weights = [load_file(r.checkpoint / "model.safetensors") for r in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert ("memory.slots" in weights[0]) == (method == "pinmem")
    assert one.scores == two.scores
    lines = [json.loads(line) for line in (one.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 2, 3]
    assert Progress("training", 3, 3) in events
    assert any(isinstance(e, Metrics) and "val/toy:red@val" in e.values for e in events)


@pytest.mark.slow
def test_another_seed_is_another_run(tmp_path):
    runs = [train(small_config(seed=s), tmp_path / str(s)) for s in (0, 1)]
    texts = [(r.run / "metrics.jsonl").read_text() for r in runs]
    assert texts[0] != texts[1]


@pytest.mark.slow
def test_training_learns(tmp_path):
    config = small_config(
        iterations=100, optim__schedule="polynomial", optim__lr=0.05, augmentation__strong="none"
    )
    train(config, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["outer/seg"] for line in lines]
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


def test_memory_is_initialised_from_the_data(tmp_path):
    def slots(**values):
        result = train(small_config(iterations=1, **values), tmp_path / str(len(values)))
        return load_file(result.checkpoint / "model.safetensors")["memory.slots"]

    from_data, at_random = slots(), slots(model__memory__init_batches=0)
    assert not torch.allclose(from_data, at_random, atol=0.05)


def test_aggregate_may_carry_a_memory(tmp_path):
    result = train(small_config(method="aggregate", use_memory=True), tmp_path / "run")
    assert "memory.slots" in load_file(result.checkpoint / "model.safetensors")


def test_a_single_source_is_meta_learned_from_pseudo_domains(tmp_path):
    result = train(small_config(sources=["toy:red"], targets=["toy:blue"]), tmp_path / "run")
    used = json.loads((result.run / "samples.json").read_text())
    assert list(used["train"]) == ["toy:red#1", "toy:red#2"]
    assert set(result.scores["target"]) == {"toy:blue"}


def test_a_target_without_labels_is_said_and_not_scored(tmp_path):
    prepare_synthetic(["toy"])
    for sample in PreparedDataset.open("toy").samples:
        if sample.domain == "blue":
            write_png(sample.label, np.full((sample.height, sample.width), 255, np.uint8))
    events = []
    config = small_config(sources=["toy:red"], targets=["toy:blue", "toy:red"])
    result = train(config, tmp_path / "run", on_event=events.append)
    assert set(result.scores["target"]) == {"toy:red"}
    told = [event.message for event in events if isinstance(event, Notice) and event.warning]
    assert any("no pixel of toy:blue is labelled" in text for text in told)
    assert "NaN" not in (result.run / "scores.json").read_text()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sources": []}, "no source domain"),
        ({"method": "mldg", "use_memory": True}, "contradicts"),
        ({"compute__compile": True, "compute__recompute": "finest"}, "compute.recompute"),
        ({"method": "pinmem", "use_memory": False}, "contradicts"),
        ({"method": "pinmen"}, "unknown method"),
        ({"batch": 1}, "at least 2 images"),
        ({"compute__accumulate": 2}, "at least 2 images"),
        ({"model__adapters": {"lora": {"rank": 2}}}, "tune=full contradicts model.adapters.lora"),
        ({"method": "mixstyle", "method_config": {"places": []}}, "method_config.places"),
        (
            {"method": "isw", "method_config": {"loss": "irw", "placebo": True}},
            "no effect with loss=irw",
        ),
        (
            {"method": "spc", "method_config": {"projection": "instance_norm", "placebo": True}},
            "no effect with projection=instance_norm",
        ),
        (
            {"model__num_classes": 11},
            "'cityscapes-19' cannot be mapped to .* 'cityscapes-first-11'",
        ),
        ({"model__num_classes": 20}, "num_classes is 20"),
        ({"classes": "idd-level2"}, "unknown label space 'idd-level2'"),
        ({"classes": "camvid-11"}, "cannot be mapped to the classes 'camvid-11'"),
        ({"model__backbone": "tinny"}, "unknown backbone"),
        ({"model__decoder": "deeplab"}, "unknown decoder"),
        ({"device": "gpu"}, "unknown device"),
        ({"sources": ["toy:green"]}, "unknown domain"),
        ({"sources": ["toy:red", "toy"]}, "the source toy has images of another source"),
        ({"sources": ["toy:red@train", "toy:red"]}, "toy:red has images of another source"),
        ({"targets": ["toys"]}, "unknown dataset"),
    ],
)
def test_contradictions_are_refused_before_anything_is_written(tmp_path, values, said):
    with pytest.raises(ConfigError, match=said):
        train(small_config(**values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_in_use_is_not_touched(tmp_path):
    (tmp_path / "keep").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        train(small_config(), tmp_path)
    assert (tmp_path / "keep").read_text() == "mine"


def test_a_source_without_validation_split_is_trained_on_and_told(tmp_path):
    prepare(get_card("camvid"), [camvid_folder(tmp_path / "raw", {"0001TP": 3, "0016E5": 5})])
    events = []
    config = small_config(sources=["camvid:0001TP", "camvid:0016E5"], augmentation__crop=32)
    result = train(config, tmp_path / "run", on_event=events.append)
    assert set(result.scores["source"]) == {"camvid:0016E5@val"}
    assert any(isinstance(e, Notice) and "0001TP has no validation" in e.message for e in events)
    assert read_run(result.run).domain == "camvid:0016E5@val"
    config = small_config(sources=["camvid:0001TP"], augmentation__crop=32)
    assert read_run(train(config, tmp_path / "other").run).domain == "camvid:0001TP@all"


def test_an_interrupted_run_keeps_its_last_checkpoint(tmp_path):
    def interrupt(event):
        if isinstance(event, Progress) and event.task == "training" and event.done == 3:
            raise KeyboardInterrupt

    for every, kept in ((2, True), (3, False)):
        run = tmp_path / str(every)
        with pytest.raises(KeyboardInterrupt):
            train(small_config(iterations=9, checkpoint__every=every), run, on_event=interrupt)
        assert (run / "checkpoint").exists() == run.exists() == kept


def _corrupt_image(sample):
    sample.image.write_bytes(sample.image.read_bytes()[:60])


def _other_size(sample):
    write_png(sample.label, sample.read()[1][:32])


def _missing(sample):
    sample.image.unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(_corrupt_image, "cannot be read"), (_other_size, "96x32"), (_missing, "does not exist")],
)
def test_damaged_data_stops_the_run_in_a_sentence_and_leaves_nothing(tmp_path, spoil, said):
    prepare_synthetic(["toy"])
    for sample in PreparedDataset.open("toy").samples:
        spoil(sample)
    with pytest.raises(DataError, match=said):
        train(small_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_before_the_optimizer(tmp_path):
    with pytest.raises(PinMemError, match="not finite in iteration 2"):
        train(small_config(optim__lr=1e30), tmp_path / "run")
