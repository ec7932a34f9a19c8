"""The meta step of `pinmem` and `mldg`, and the contexts in which it runs."""

import copy
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from pinmem_core.config import LossConfig, MetaConfig, ModelConfig, TrainConfig
from pinmem_core.data.batches import Batch
from pinmem_core.methods import methods
from pinmem_core.methods.base import Sources, StepContext, StepResult
from pinmem_core.methods.losses import training_losses
from pinmem_core.methods.meta import fast_weights, unrecorded_statistics
from pinmem_core.models import Segmenter


def _segmenter(memory: bool = True) -> Segmenter:
    torch.manual_seed(0)
    config = ModelConfig(backbone="tiny", feature_dim=16)
    segmenter = Segmenter(config if memory else config.model_copy(update={"memory": None}))
    segmenter.auxiliary[3].p = 0.0
    if segmenter.memory:
        segmenter.memory.gumbel = False
    return segmenter.double().eval()  # a step sets it to training


def _batch(domains: int = 2, meta_train=(0,), meta_test=(1,)) -> Batch:
    torch.manual_seed(1)
    labels = (
        torch.randint(0, 19, (domains, 3, 8, 8)).repeat_interleave(4, 2).repeat_interleave(4, 3)
    )
    images = torch.randn(domains, 3, 3, 32, 32, dtype=torch.float64)
    return Batch(images, labels, tuple(meta_train), tuple(meta_test))


def _running(segmenter):
    return {k: v.clone() for k, v in segmenter.named_buffers() if "running" in k}


def _gradients(segmenter):
    return {k: p.grad for k, p in segmenter.named_parameters() if p.grad is not None}


class OnGpu(torch.Tensor):
    """A tensor of the CPU for which the code takes the path of a GPU."""

    is_cuda = True


@pytest.mark.parametrize("kind", [torch.Tensor, OnGpu])
def test_fast_weights_move_and_return_to_the_last_bit(kind):
    segmenter, step_size = _segmenter(), torch.tensor(0.5).as_subclass(kind)
    before = {k: p.detach().clone() for k, p in segmenter.named_parameters()}
    frozen, *moving = segmenter.parameters()
    for p in moving:
        p.grad = torch.randn_like(p)
    with fast_weights(segmenter, step_size):
        for name, p in segmenter.named_parameters():
            expected = before[name] if p is frozen else before[name] - 0.5 * p.grad
            torch.testing.assert_close(p.detach(), expected)
    assert all(torch.equal(p, before[k]) for k, p in segmenter.named_parameters())
    with pytest.raises(RuntimeError), fast_weights(segmenter, step_size):
        raise RuntimeError
    assert all(torch.equal(p, before[k]) for k, p in segmenter.named_parameters())


def test_unrecorded_statistics_normalise_by_the_batch_and_remember_nothing():
    segmenter = _segmenter().train()
    images = _batch().all()[0]
    recorded = segmenter(images)
    before = _running(segmenter)
    with unrecorded_statistics(segmenter):
        assert torch.equal(segmenter(images), recorded)
    assert all(torch.equal(v, before[k]) for k, v in _running(segmenter).items())
    with pytest.raises(RuntimeError), unrecorded_statistics(segmenter):
        raise RuntimeError
    segmenter(images)
    assert not all(torch.equal(v, before[k]) for k, v in _running(segmenter).items())


def test_a_norm_without_running_statistics_gets_none():
    norms = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.BatchNorm2d(2))
    with unrecorded_statistics(norms):
        assert not any(norm.track_running_stats for norm in norms)
    assert [norm.track_running_stats for norm in norms] == [False, True]


@pytest.mark.parametrize("name", ["pinmem", "mldg"])
@pytest.mark.parametrize("meta", [MetaConfig(), MetaConfig(inner="all", outer_weight=0.5)])
def test_a_meta_step_equals_one_on_three_separate_networks(name, meta):
    """The in-place step against the obvious one: copies of the network, nothing shared."""
    segmenter, batch, alpha = _segmenter(memory=name == "pinmem"), _batch(), 0.05
    reference = copy.deepcopy(segmenter)
    result = methods.get(name)(TrainConfig(meta=meta)).step(StepContext(segmenter, batch, alpha))

    images, labels = batch.of([0])
    reference.train()
    inner = training_losses(
        reference,
        *(batch.all() if meta.inner == "all" else (images, labels)),
        LossConfig(),
        write=name == "pinmem",
    )
    inner.total.backward()
    moved = copy.deepcopy(reference)
    moved.zero_grad()
    with torch.no_grad():
        for p, original in zip(moved.parameters(), reference.parameters(), strict=True):
            p.copy_(original - alpha * original.grad)
    rewritten = None
    if name == "pinmem":
        feature = moved.encode(images).feature.detach()
        rewritten = moved.memory.write(feature, labels, moved.memory.slots)
        torch.testing.assert_close(result.rewritten, rewritten, rtol=0, atol=1e-12)
    outer = training_losses(moved, *batch.of([1]), LossConfig(), slots=rewritten)
    (meta.outer_weight * outer.total).backward()

    assert result.losses["inner"].total.item() == pytest.approx(inner.total.item(), rel=1e-12)
    assert result.losses["outer"].total.item() == pytest.approx(outer.total.item(), rel=1e-12)
    at_theta, at_moved = _gradients(reference), _gradients(moved)
    for parameter, gradient in _gradients(segmenter).items():
        expected = at_theta[parameter] + at_moved.get(parameter, 0)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    if name == "pinmem":
        # From the outer loss the write map learns through the memory; the classifier gets nothing.
        assert at_moved["memory.write_map.0.weight"].any()
        assert "memory.classifier.weight" not in at_moved


@pytest.mark.parametrize("name", ["pinmem", "mldg", "aggregate"])
def test_a_step_moves_batch_norm_once_and_leaves_weights_and_memory(name):
    segmenter = _segmenter(memory=name == "pinmem")
    before = {k: p.detach().clone() for k, p in segmenter.named_parameters()}
    slots = segmenter.memory.slots.clone() if segmenter.memory else None
    batch = _batch()
    alone = copy.deepcopy(segmenter).train()
    images, labels = batch.all() if name == "aggregate" else batch.of(batch.meta_train)
    training_losses(alone, images, labels, LossConfig(), write=name == "pinmem")

    methods.get(name)(TrainConfig()).step(StepContext(segmenter, batch, 0.01))
    assert all(torch.equal(p, before[k]) for k, p in segmenter.named_parameters())
    assert slots is None or torch.equal(segmenter.memory.slots, slots)
    expected = _running(alone)
    assert all(torch.equal(v, expected[k]) for k, v in _running(segmenter).items())


@pytest.mark.parametrize("name", ["pinmem", "mldg"])
def test_a_loss_scale_multiplies_the_gradients_and_not_the_inner_step(name):
    gradients, totals = [], []
    for scaler in (None, GradScaler("cpu", init_scale=4.0)):
        segmenter = _segmenter(memory=name == "pinmem")
        method = methods.get(name)(TrainConfig(), scaler)
        result = method.step(StepContext(segmenter, _batch(), 0.05))
        totals.append([losses.total.item() for losses in result.losses.values()])
        gradients.append(_gradients(segmenter))
    assert totals[0] == totals[1]
    plain, scaled = gradients
    for parameter, gradient in plain.items():
        torch.testing.assert_close(scaled[parameter], 4 * gradient, rtol=1e-12, atol=0)


def test_what_a_step_works_on_stays_as_it_is():
    context = StepContext(_segmenter(), _batch(), 0.1)
    assert (context.iteration, context.sources) == (0, None)
    for value, name in (
        (context, "inner_lr"),
        (StepResult({}), "rewritten"),
        (Sources(lambda _: (), 1), "epoch"),
    ):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, None)


def test_the_refresh_writes_meta_train_images_in_evaluation_mode():
    segmenter, batch = _segmenter(), _batch()
    before = _running(segmenter)
    frozen = copy.deepcopy(segmenter).eval()
    images, labels = batch.of([0])
    with torch.no_grad():
        expected = frozen.memory.write(frozen.encode(images).feature, labels, frozen.memory.slots)
    methods.get("pinmem")(TrainConfig()).refresh(StepContext(segmenter, batch, 0.0))
    assert torch.equal(segmenter.memory.slots, expected)
    assert all(torch.equal(v, before[k]) for k, v in _running(segmenter).items())


def test_three_domains_can_be_split_either_way():
    for meta_train, meta_test in (((2, 0), (1,)), ((1,), (0, 2))):
        context = StepContext(_segmenter(), _batch(3, meta_train, meta_test), 0.01)
        result = methods.get("pinmem")(TrainConfig()).step(context)
        assert result.losses["outer"].total.isfinite()
