"""Runs that start from another model: what they take, what they freeze, and what they record."""

import json
import shutil
from functools import partial

import pytest
import torch
from conftest import Result, small_config
from safetensors.torch import load_file
from test_run_resuming import StopAfter

from pinmem_core.config import ModelConfig
from pinmem_core.data.batches import Batch, load_domains
from pinmem_core.data.loader import DomainLoader
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.errors import ConfigError, DataError, StoppedRunError
from pinmem_core.evaluation import TrainedOn
from pinmem_core.events import Notice, ignore
from pinmem_core.methods import methods
from pinmem_core.models import Segmenter, load_checkpoint, save_checkpoint
from pinmem_core.training import resume, train
from pinmem_core.training.setup import initial_segmenter, initialize_memory, resolve
from pinmem_core.training.step import TrainStep

CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path):
    """Make a checkpoint with other weights than those of a run; `classes` is its number."""

    def make(classes: int = 19, about: dict | None = None, **values):
        plain = small_config(**values).model.model_dump() | {"num_classes": classes}
        plain.pop("label_space", None)
        config = ModelConfig.model_validate(plain)
        torch.manual_seed(123)
        folder = tmp_path / f"model-{classes}"
        save_checkpoint(Segmenter(config), folder, about or {})
        return folder

    return make


def _start(folder, **values):
    heard = []
    config = resolve(small_config(init_from=str(folder), **values))
    segmenter = initial_segmenter(config, on_event=heard.append)
    (notice,) = [event.message for event in heard if isinstance(event, Notice)]
    return config, segmenter, notice


def test_a_model_of_the_same_architecture_is_taken_whole_and_its_memory_stays(model):
    folder = model()
    config, segmenter, notice = _start(folder)
    state = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in segmenter.state_dict().items())
    assert notice == "initialised from model-19; new: nothing"
    prepare_synthetic(["toy"])
    domains = load_domains(config.sources, pseudo_domains=2, seed=0)
    initialize_memory(segmenter, partial(DomainLoader.of, domains, config), config, ignore)
    assert torch.equal(segmenter.memory.slots, state["memory.slots"])


def test_rows_are_taken_by_the_names_of_the_classes_and_new_slots_come_from_batches(model):
    folder = model(classes=17)
    config, segmenter, notice = _start(folder)
    state, own = load_file(folder / "model.safetensors"), segmenter.state_dict()
    by_class = {name for name in own if own[name].shape != state[name].shape}
    assert {"memory.slots", "decoder.classifier.weight", "auxiliary.4.bias"} <= by_class
    for name, value in own.items():
        assert torch.equal(value[:17] if name in by_class else value, state[name])
    assert notice == "initialised from model-17; new: classifier rows for motorcycle, bicycle"
    before = own["memory.slots"].clone()
    prepare_synthetic(["toy"])
    domains = load_domains(config.sources, pseudo_domains=2, seed=0)
    initialize_memory(segmenter, partial(DomainLoader.of, domains, config), config, ignore)
    assert torch.equal(segmenter.memory.slots[:17], before[:17])
    assert not torch.equal(segmenter.memory.slots[17:], before[17:])


def test_what_has_another_shape_or_is_absent_is_new_and_listed(model):
    _, segmenter, notice = _start(model(), model__feature_dim=24)
    assert segmenter.memory.taken == frozenset()
    assert "memory" in notice and "decoder.classifier" in notice and "backbone" not in notice
    without = model(model__memory=None)
    assert _start(without)[2] == "initialised from model-19; new: memory"


def test_a_slot_of_a_class_that_never_occurred_is_initialised(model):
    folder = model()
    segmenter, _ = load_checkpoint(folder)
    segmenter.memory.slots[5] = 0
    save_checkpoint(segmenter, folder, {})
    assert _start(folder)[1].memory.taken == frozenset(range(19)) - {5}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model__backbone": "resnet10"}, "model.backbone is resnet10, but the model .* has tiny"),
        ({"init_weights": "a.pth"}, "init_weights=a.pth contradicts init_from"),
        (
            {"method": "aggregate", "optim__freeze": ["backbone", "decoder"]},
            "leaves nothing to train",
        ),
    ],
)
def test_settings_that_contradict_the_model_are_refused(model, values, said):
    with pytest.raises(ConfigError, match=said):
        resolve(small_config(init_from=str(model()), **values))


@pytest.mark.slow
def test_a_model_with_adapters_is_taken_by_a_run_with_the_same_ones(tmp_path):
    config = resolve(small_config(method="ibn", model__backbone="resnet10"))
    torch.manual_seed(123)
    save_checkpoint(Segmenter(config.model), tmp_path / "ibn", {})
    values = {"method": "ibn", "model__backbone": "resnet10"}
    _, segmenter, notice = _start(tmp_path / "ibn", **values)
    state = load_file(tmp_path / "ibn/model.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in segmenter.state_dict().items())
    assert notice.endswith("new: nothing")
    with pytest.raises(ConfigError, match=r"adapters of the model .* differ"):
        _start(tmp_path / "ibn", method="aggregate", model__backbone="resnet10")


@pytest.mark.parametrize("part", ["backbone", "decoder"])
def test_a_part_with_random_weights_is_not_frozen(part):
    with pytest.raises(ConfigError, match=f"optim.freeze={part} needs trained weights"):
        resolve(small_config(optim__freeze=[part]))


def test_new_rows_are_not_frozen(model):
    with pytest.raises(ConfigError, match="untrained: classifier rows for motorcycle, bicycle"):
        _start(model(classes=17), optim__freeze="decoder")


def _two_steps(config):
    step = TrainStep(config, initial_segmenter(config), CPU)
    generator = torch.Generator().manual_seed(7)
    for iteration in range(2):
        shape = (2, 4, 3, 64, 64)
        views = [torch.randn(shape, generator=generator) for _ in range(step.method.views)]
        labels = torch.randint(0, 19, (2, 4, 64, 64), generator=generator)
        step.step(iteration, Batch(views[0], labels, (0,), (1,), more_views=tuple(views[1:])))
    return step


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in ("pinmem", "aggregate") else pytest.mark.slow)
        for name in sorted(methods.all())
    ],
)
@pytest.mark.parametrize(
    "compute",
    [
        {},
        pytest.param({"batch": 4, "compute__accumulate": 2}, marks=pytest.mark.slow),
        pytest.param({"compute__recompute": True}, marks=pytest.mark.slow),
    ],
)
def test_every_method_leaves_a_frozen_backbone_as_it_is(model, method, compute):
    adapters = methods.get(method).adapters(methods.get(method).Config())
    backbone = "resnet10" if adapters or "compute__recompute" in compute else "tiny"
    values = {"method": method, "model__backbone": backbone, **compute}
    if method == "distillation":
        values["method_config"] = {"teacher": "starter"}
    config = resolve(small_config(**values))
    folder = model(**values, model__memory=config.model.memory)
    config = resolve(small_config(init_from=str(folder), optim__freeze="backbone", **values))
    before = {k: v.clone() for k, v in initial_segmenter(config).state_dict().items()}
    step = _two_steps(config)
    changed = {n for n, v in step.segmenter.state_dict().items() if not torch.equal(v, before[n])}
    bases = (".means", ".stds", ".updated")  # of styles, which `spc` follows in a frozen backbone
    assert changed and not any(n.startswith("backbone.") and not n.endswith(bases) for n in changed)
    assert all(p.grad is None for p in step.segmenter.backbone.parameters())
    assert not any(name.startswith("backbone.") for name in step.states()["optimizer"])


def test_both_parts_are_frozen_and_the_memory_is_trained(model):
    parts = ["backbone", "decoder"]
    config = resolve(small_config(init_from=str(model()), optim__freeze=parts))
    before = {k: v.clone() for k, v in initial_segmenter(config).state_dict().items()}
    state = _two_steps(config).segmenter.state_dict()
    changed = {
        name.partition(".")[0] for name in state if not torch.equal(state[name], before[name])
    }
    assert changed == {"memory", "auxiliary"}


@pytest.mark.slow
def test_a_frozen_run_that_is_stopped_resumes_bit_equal_and_without_its_model(model, tmp_path):
    folder = model(classes=17)
    values = {"init_from": str(folder), "optim__freeze": "backbone", "iterations": 4}
    config = small_config(**values, checkpoint__every=2)
    straight = train(config, tmp_path / "straight").run
    stop = StopAfter(3)
    with pytest.raises(StoppedRunError):
        train(config, tmp_path / "stopped", on_event=stop.hear, stop=stop)
    shutil.rmtree(folder)
    again = resume(tmp_path / "stopped").run
    for file in ("checkpoint/model.safetensors", "checkpoint/config.json", "scores.json"):
        assert (again / file).read_bytes() == (straight / file).read_bytes()


@pytest.mark.slow
def test_a_model_that_changed_before_the_first_snapshot_is_refused(model, tmp_path):
    config = small_config(init_from=str(model()))
    run = train(config, tmp_path / "run").run
    for name in ("snapshots", "checkpoint"):
        shutil.rmtree(run / name)
    (run / "scores.json").unlink()
    (run / "config.json").write_text(
        (run / "config.json").read_text().replace("model-19", model(classes=17).name)
    )
    with pytest.raises(DataError, match="has changed since the run"):
        resume(run)


def test_what_the_model_was_trained_on_is_seen_and_recorded(tmp_path):
    first = train(small_config(sources=["toy:red"], iterations=1), tmp_path / "first").run
    values = {"sources": ["toy:blue"], "targets": ["toy:red@all"], "iterations": 1}
    run = train(small_config(init_from=str(first), **values), tmp_path / "second").run
    assert json.loads((run / "scores.json").read_text())["target"]["toy:red@all"]["seen"] is True
    config = json.loads((run / "checkpoint/config.json").read_text())
    digest = json.loads((first / "checkpoint/config.json").read_text())["sha256"]["weights"]
    assert config["init_from"] == {"model": "first", "sha256": digest, "sources": ["toy:red"]}
    assert config["training"]["init_from"] == "first"
    third = TrainedOn.of_checkpoint(config)
    assert third.sources == ("toy:blue", "toy:red") and len(third.digests["toy"]) == 16
    card = (run / "checkpoint/README.md").read_text()
    assert "| initialised from | first |" in card and digest in card


@pytest.mark.slow
def test_a_model_of_unknown_data_makes_no_domain_unseen(model, tmp_path):
    values = {"sources": ["toy:blue"], "targets": ["toy:red@all"], "iterations": 1}
    run = train(small_config(init_from=str(model()), **values), tmp_path / "run").run
    assert json.loads((run / "scores.json").read_text())["target"]["toy:red@all"]["seen"] is None
    config = json.loads((run / "checkpoint/config.json").read_text())
    assert TrainedOn.of_folder(run / "checkpoint", config).digests is None


def test_the_architecture_follows_the_model_unless_a_recipe_is_named(model, tmp_path):
    folder = str(model(model__test_time_bn=0.25, model__memory__residual=True))
    small = "--iterations 1 --batch 2 --crop 64 --device cpu --set model.memory.init_batches=1"
    call = ["train", "--sources", "toy:red,toy:blue", "--from", folder, *small.split()]
    run = tmp_path / "run"
    assert Result(*call, "-o", str(run)).code == 0
    taken = json.loads((run / "checkpoint/config.json").read_text())["model"]
    theirs = json.loads((tmp_path / "model-19/config.json").read_text())["model"]
    theirs["memory"]["init_batches"] = 1
    assert taken == theirs
    refused = Result(*call, "--recipe", "camvid")
    assert refused.code == 2 and "model.backbone is mobilenet_v2" in refused.err
