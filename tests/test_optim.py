"""Optimizers, their parameter groups, and what a skipped step leaves behind."""

import pytest
import torch

from pinmem_core.config import ModelConfig, OptimConfig
from pinmem_core.errors import ConfigError
from pinmem_core.models import Segmenter
from pinmem_core.training.optim import build_optimizer, parameter_groups, set_learning_rate
from pinmem_core.training.optimizers import optimizers

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
def test_a_step_whose_loss_is_not_finite_changes_nothing(segmenter, name):
    optimizer = build_optimizer(OptimConfig(name=name), segmenter)
    before = [parameter.detach().clone() for parameter in segmenter.parameters()]
    gradients(segmenter, 0)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(map(torch.equal, before, segmenter.parameters()))
    assert not any(value.any() for state in optimizer.state.values() for value in state.values())


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
