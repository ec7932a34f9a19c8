"""pinmem's iteration against a plain transcription of the method, in float64."""

import functools

import pytest
import torch
from benchmarks.naive import naive_iteration
from torch import nn

from pinmem_core.config import LossConfig, ModelConfig, TrainConfig
from pinmem_core.data.batches import Batch
from pinmem_core.methods import methods
from pinmem_core.methods.base import StepContext
from pinmem_core.models import Segmenter

WEIGHTS = LossConfig(auxiliary=0.5, read=0.3, divergence=0.7, classification=0.6)
ITERATIONS, INNER_LR = 2, 0.1
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def untrained_segmenter(backbone: str) -> Segmenter:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(
        {"backbone": backbone, "feature_dim": 16, "memory": {"read": "softmax"}}
    )
    segmenter = Segmenter(config).double()
    nn.init.normal_(segmenter.memory.classifier.weight)  # so that what it passes on is seen
    for module in segmenter.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    return segmenter


def drawn_batch(meta_train: tuple[int, ...], meta_test: tuple[int, ...]) -> Batch:
    """Noise and blocky labels of a few classes and 255, in three domains of two images."""
    rng = torch.Generator().manual_seed(1)
    images = torch.randn((3, 2, 3, 64, 64), generator=rng, dtype=torch.float64)
    blocks = torch.randint(0, 13, (3, 2, 8, 8), generator=rng)
    labels = blocks.masked_fill(blocks == 12, 255).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return Batch(images, labels, meta_train, meta_test)


def sgd(segmenter: Segmenter) -> torch.optim.Optimizer:
    return torch.optim.SGD(segmenter.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)


def by_naive(segmenter: Segmenter, batch: Batch) -> list[dict[str, dict[str, float]]]:
    optimizer = sgd(segmenter)
    return [
        naive_iteration(segmenter, optimizer, batch, INNER_LR, WEIGHTS) for _ in range(ITERATIONS)
    ]


def by_pinmem(segmenter: Segmenter, batch: Batch) -> list[dict[str, dict[str, float]]]:
    method, optimizer = methods.get("pinmem")(TrainConfig(loss=WEIGHTS)), sgd(segmenter)
    losses = []
    for _ in range(ITERATIONS):
        optimizer.zero_grad()
        context = StepContext(segmenter, batch, INNER_LR)
        result = method.step(context)
        optimizer.step()
        method.refresh(context)
        losses.append(
            {
                phase: {n: t.item() for n, t in {**of.terms, "total": of.total}.items()}
                for phase, of in result.losses.items()
            }
        )
    return losses


@functools.cache
def iterated(backbone: str, meta_train: tuple[int, ...], meta_test: tuple[int, ...]):
    """Return losses and state after the iterations of both, and the state before."""
    batch = drawn_batch(meta_train, meta_test)
    before = untrained_segmenter(backbone).state_dict()
    both = []
    for iterations in (by_naive, by_pinmem):
        segmenter = untrained_segmenter(backbone)
        both.append((iterations(segmenter, batch), segmenter.state_dict()))
    return *both, before


@pytest.fixture(
    params=[
        ("tiny", (1,), (0, 2)),
        pytest.param(("tiny", (2, 0), (1,)), marks=pytest.mark.slow),
        pytest.param(("resnet10", (0,), (1,)), marks=pytest.mark.slow),
    ]
)
def outcome(request):
    return iterated(*request.param)


def test_losses_agree(outcome):
    (expected, _), (got, _), _ = outcome
    assert [set(losses) for losses in got] == [{"inner", "outer"}] * ITERATIONS
    for ours, theirs in zip(got, expected, strict=True):
        for phase, terms in theirs.items():
            assert ours[phase] == pytest.approx(terms, rel=1e-9), phase


def test_parameters_statistics_and_memory_agree(outcome):
    (_, expected), (_, got), before = outcome
    assert list(got) == list(expected)
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name], **CLOSE, msg=name)
        assert not torch.equal(tensor, before[name]), f"{name} has not moved"
