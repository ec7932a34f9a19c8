"""Optimizers, their parameter groups, and what a skipped step leaves behind."""

import pytest
import torch
from conftest import small_config
from safetensors.torch import load_file

from pinmem_core.config import ModelConfig, OptimConfig
from pinmem_core.data.batches import Batch
from pinmem_core.errors import ConfigError, PinMemError, StoppedRunError
from pinmem_core.models import Segmenter
from pinmem_core.training import resume, train
from pinmem_core.training.dry_run import iteration_cost
from pinmem_core.training.optim import (
    build_optimizer,
    learning_rate,
    parameter_groups,
    set_learning_rate,
)
from pinmem_core.training.optimizers import optimizers
from pinmem_core.training.step import FiniteLossCheck, TrainStep

CPU = torch.device("cpu")
STEPS = 4


@pytest.fixture
def segmenter():
    torch.manual_seed(0)
    return Segmenter(ModelConfig(backbone="tiny", feature_dim=16)).double()


def gradients(segmenter, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in segmenter.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def trained(segmenter, optimizer):
    """Return the parameters after some steps with random gradients."""
    for step in range(STEPS):
        gradients(segmenter, step)
        optimizer.step()
    return [parameter.detach().clone() for parameter in segmenter.parameters()]


def test_by_default_all_parameters_are_in_one_group_in_the_networks_order(segmenter):
    (group,) = parameter_groups(OptimConfig(), segmenter)
    assert group["params"] == list(segmenter.parameters())
    assert (group["lr_scale"], group["weight_decay"]) == (1.0, 5e-4)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.1)),
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.02, betas=(0.8, 0.9), weight_decay=0.1)),
    ],
)
def test_an_optimizer_steps_as_torchs_own(segmenter, name, reference):
    config = OptimConfig(name=name, lr=0.02, betas=(0.8, 0.9), weight_decay=0.1)
    start = {key: value.clone() for key, value in segmenter.state_dict().items()}
    ours = trained(segmenter, build_optimizer(config, segmenter))
    segmenter.load_state_dict(start)
    theirs = trained(segmenter, reference(segmenter.parameters()))
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-14)


def test_the_backbone_has_a_rate_of_its_own_and_vectors_may_have_no_decay(segmenter):
    config = OptimConfig(backbone_lr_scale=0.1, decay_vectors=False)
    optimizer = build_optimizer(config, segmenter)
    set_learning_rate(optimizer, 0.5)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in segmenter.named_parameters():
        lr = 0.05 if name.startswith("backbone.") else 0.5
        assert found.pop(id(parameter)) == (lr, 5e-4 if parameter.ndim > 1 else 0.0)
    assert not found


@pytest.mark.parametrize("name", sorted(optimizers.all()))
def test_a_step_whose_loss_is_not_finite_changes_nothing(name):
    step = train_step(optim__name=name)
    step.loss_check = FiniteLossCheck(CPU, deferred=True)
    before = [parameter.detach().clone() for parameter in step.segmenter.parameters()]
    images = torch.full((2, 2, 3, 64, 64), torch.nan)
    step.step(0, Batch(images, torch.zeros(2, 2, 64, 64, dtype=torch.long), (0,), (1,)))
    assert all(map(torch.equal, before, step.segmenter.parameters()))
    state = step.optimizer.state.values()
    assert not any(value.any() for values in state for value in values.values())
    with pytest.raises(PinMemError, match="not finite in iteration 1"):
        step.check()


@pytest.mark.parametrize("name", sorted(optimizers.all()))
def test_frozen_parameters_stay(segmenter, name):
    optimizer = build_optimizer(OptimConfig(name=name, weight_decay=0.5), segmenter)
    before = segmenter.backbone.stem[0].weight.detach().clone()
    gradients(segmenter, 0)
    for parameter in segmenter.backbone.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    optimizer.step()
    assert torch.equal(segmenter.backbone.stem[0].weight, before)


def test_an_unknown_optimizer_is_named_with_the_closest_one(segmenter):
    with pytest.raises(ConfigError, match="unknown optimizer 'adam'") as caught:
        build_optimizer(OptimConfig(name="adam"), segmenter)
    assert "adamw" in caught.value.hint


def train_step(**values) -> TrainStep:
    config = small_config(method="aggregate", **values)
    torch.manual_seed(0)
    return TrainStep(config, Segmenter(config.model), CPU)


def batch(seed: int = 0) -> Batch:
    dice = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 19, (2, 2, 64, 64), generator=dice)
    return Batch(torch.randn(2, 2, 3, 64, 64, generator=dice), labels, (0,), (1,))


def test_layers_learn_more_slowly_the_further_they_are_from_the_decoder():
    segmenter = Segmenter(ModelConfig(backbone="resnet10", feature_dim=16))
    config = OptimConfig(layer_decay=0.5, backbone_lr_scale=0.1)
    scales = {p: g["lr_scale"] for g in parameter_groups(config, segmenter) for p in g["params"]}
    expected = {"conv1": 1, "bn1": 1, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4}
    for name, parameter in segmenter.backbone.named_parameters():
        depth = 5 - expected[name.split(".")[0]]
        assert scales[parameter] == pytest.approx(0.1 * 0.5**depth)
    assert {scales[p] for p in segmenter.decoder.parameters()} == {1.0}


def test_frozen_parameters_are_in_no_group(segmenter):
    segmenter.backbone.requires_grad_(False)
    grouped = {p for g in parameter_groups(OptimConfig(), segmenter) for p in g["params"]}
    assert grouped == {p for p in segmenter.parameters() if p.requires_grad}


def test_the_learning_rate_warms_up_linearly():
    for schedule in ("exponential", "polynomial"):
        plain, warm = OptimConfig(schedule=schedule), OptimConfig(schedule=schedule, warmup=4)
        shares = [learning_rate(warm, i, 9) / learning_rate(plain, i, 9) for i in range(7)]
        assert shares == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1])


def test_gradients_are_clipped_to_the_norm():
    steps = [train_step(optim__clip=clip, optim__momentum=0.0) for clip in (None, 0.01)]
    for step in steps:
        step.step(0, batch())
    free, clipped = (
        [p.grad for p in step.segmenter.parameters() if p.grad is not None] for step in steps
    )
    norm = torch.stack([gradient.norm() for gradient in free]).norm()
    assert norm > 0.01
    for gradient, limited in zip(free, clipped, strict=True):
        torch.testing.assert_close(limited, gradient * 0.01 / norm, rtol=1e-3, atol=1e-9)


def test_the_average_follows_its_formula_and_is_what_is_published():
    step = train_step(optim__ema=0.75)
    expected = {n: p.detach().double() for n, p in step.segmenter.named_parameters()}
    for iteration in range(3):
        step.step(iteration, batch(iteration))
        for name, parameter in step.segmenter.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * parameter.detach().double()
    before = {name: value.clone() for name, value in step.segmenter.state_dict().items()}
    network = step.network([batch(7), batch(8)])
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-5, atol=1e-7)
    assert all(torch.equal(v, before[n]) for n, v in step.segmenter.state_dict().items())


def test_statistics_are_the_mean_over_the_batches():
    step = train_step(optim__ema=0.75)
    step.step(0, batch())
    batches = [batch(7), batch(8), batch(9)]
    network = step.network(batches)
    with torch.no_grad():
        maps = [network.backbone.stem[0](each.all()[0]) for each in batches]
    means = torch.stack([each.mean(dim=(0, 2, 3)) for each in maps]).mean(dim=0)
    variances = torch.stack([each.var(dim=(0, 2, 3)) for each in maps]).mean(dim=0)
    norm = network.backbone.stem[1]
    torch.testing.assert_close(norm.running_mean, means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, variances, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_with_an_average_scores_it_and_resumes_exactly(tmp_path):
    values = {"optim__ema": 0.5, "optim__ema_batches": 2, "optim__warmup": 2, "optim__clip": 1.0}
    config = small_config(method="aggregate", iterations=4, checkpoint__every=2, **values)
    straight = train(config, tmp_path / "straight").run
    seen = []
    with pytest.raises(StoppedRunError):
        train(config, tmp_path / "run", on_event=seen.append, stop=lambda: len(seen) > 8)
    run = resume(tmp_path / "run").run
    for file in (
        "checkpoint/model.safetensors",
        "scores.json",
        "snapshots/00000004/ema.safetensors",
    ):
        assert (run / file).read_bytes() == (straight / file).read_bytes()
    average = load_file(straight / "snapshots/00000004/ema.safetensors")
    published = load_file(straight / "checkpoint/model.safetensors")
    assert all(torch.equal(published[name], value) for name, value in average.items())


@pytest.mark.slow
def test_a_dry_run_counts_the_average():
    plain, averaged = (
        iteration_cost(train_step(**values), batch()) for values in ({}, {"optim__ema": 0.9})
    )
    weights = sum(4 * p.numel() for p in train_step().segmenter.parameters())
    assert averaged.memory_bytes - plain.memory_bytes == pytest.approx(weights, rel=0.05)
