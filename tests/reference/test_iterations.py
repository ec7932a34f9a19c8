"""Complete iterations of the methods: step, optimizer, refresh."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from pinmem_core.config import LossConfig, ModelConfig, OptimConfig, TrainConfig
from pinmem_core.data.batches import Batch
from pinmem_core.methods import methods
from pinmem_core.methods.base import Method, StepContext, StepResult
from pinmem_core.methods.losses import classification_loss, divergence_loss
from pinmem_core.models import Segmenter
from pinmem_core.training.optim import inner_learning_rate, learning_rate

from .figures import Computed, under
from .fixtures import Fixture, every_file
from .names import (
    batch_counts,
    model_config,
    official_parameters,
    official_tensors,
    stride_of,
)
from .networks import rule_segmenter, soft_counts

pytestmark = pytest.mark.reference

METHODS = {
    "train_agg": "aggregate",
    "train_memory_agg": "aggregate",
    "train_mldg": "mldg",
    "train_memory_mldg": "pinmem",
}
"""By the original's function."""


@dataclass
class Forward:
    """What one forward did with the memory.

    Attributes:
        updated: Whether the weights were θ'.
        before: The memory when it started; None without memory.
        after: The memory when it ended.
        written: What it wrote.
    """

    training: bool
    updated: bool
    before: Tensor | None = None
    written: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)

    @property
    def after(self) -> Tensor | None:
        return self.before if self.written is None else self.written

    @property
    def net(self) -> str:
        """The original's name of the network, of which it has two updated copies."""
        if not self.updated:
            return "net"
        return "updated_net" if self.written is None else "updated_net2"

    def trace(self) -> dict[str, object]:
        """Return what a manifest says of a forward."""
        graph = self.after is not None and self.after.requires_grad
        return {
            "net": self.net,
            "training": self.training,
            "memory_writing": self.written is not None,
            "writing_detach": self.written is None or not graph,
            "mem_after_requires_grad": None if self.after is None else graph,
        }


class Witness:
    """Watches a segmenter and a method from outside, as they run an iteration."""

    def __init__(self, segmenter: Segmenter, method: Method) -> None:
        self.segmenter = segmenter
        self.method = method
        self.updated = False
        self.forwards: list[Forward] = []
        self.inner: dict[str, Tensor] = {}
        self.statistics: dict[str, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(patch.object(self.segmenter, "encode", self._encode))
            if self.segmenter.memory is not None:
                for name, spy in (("read", self._read), ("write", self._write)):
                    stack.enter_context(patch.object(self.segmenter.memory, name, spy))
            if self.method.meta:
                self._move = self.method.fast_weights
                stack.enter_context(patch.object(self.method, "fast_weights", self._fast_weights))
            yield

    def _encode(self, images: Tensor) -> Any:
        self.forwards.append(Forward(self.segmenter.training, self.updated))
        return Segmenter.encode(self.segmenter, images)

    def _read(self, feature: Tensor, slots: Tensor) -> Any:
        self.forwards[-1].before = slots
        return type(self.segmenter.memory).read(self.segmenter.memory, feature, slots)

    def _write(self, feature: Tensor, labels: Tensor, slots: Tensor) -> Tensor:
        memory, forward = self.segmenter.memory, self.forwards[-1]
        assert memory is not None
        forward.before = slots.clone()  # the refresh overwrites it
        forward.written = type(memory).write(memory, feature, labels, slots)
        with torch.no_grad():
            forward.losses["div"] = divergence_loss(forward.written)
            forward.losses["cls"] = classification_loss(memory.classifier(forward.written))
        return forward.written

    @contextmanager
    def _fast_weights(self, segmenter: Segmenter, inner_lr: float) -> Iterator[None]:
        self.inner = gradients(self.segmenter)
        self.statistics = running_statistics(self.segmenter)
        with self._move(segmenter, inner_lr):
            self.updated = True
            yield
            self.updated = False

    def memories(self) -> Computed:
        """Return the memory before and after each forward, and after the iteration."""
        computed: dict[str, Tensor | float] = {}
        for i, forward in enumerate(self.forwards):
            if forward.before is not None and forward.after is not None:
                tensors = {"mem_before": forward.before, "mem_after": forward.after}
                computed |= under(f"fwd{i}_{forward.net}", {**tensors, **forward.losses})
        if self.segmenter.memory is not None:
            computed["mem_final"] = self.segmenter.memory.slots
        return computed

    def facts(self) -> dict[str, object]:
        """Return what a manifest says of an iteration."""
        facts: dict[str, object] = {
            "forward_trace": [forward.trace() for forward in self.forwards],
            "bn_num_batches_tracked": batch_counts(self.segmenter),
        }
        if self.method.meta:
            now = running_statistics(self.segmenter)
            facts["bn_buffers_unchanged_after_inner_forward"] = all(
                torch.equal(now[name], then) for name, then in self.statistics.items()
            )
        return facts


def gradients(segmenter: Segmenter) -> dict[str, Tensor]:
    named = official_parameters(segmenter).items()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def running_statistics(segmenter: Segmenter) -> dict[str, Tensor]:
    tensors = official_tensors(segmenter).items()
    return {name: t.clone() for name, t in tensors if ".running_" in name}


def options(fixture: Fixture) -> dict[str, str]:
    return dict(re.findall(r"--(\w+) ([^-\s]\S*)", fixture.settings["argv"]))


def feature_grid(fixture: Fixture) -> tuple[int, int]:
    """Return the feature's height and width."""
    meaning = fixture.about["tensors"]["it1/soft_counts_domain0"]["meaning"]
    height, width = re.search(r"(\d+)x(\d+) feature grid", meaning).groups()
    return int(height), int(width)


def described_model(fixture: Fixture) -> ModelConfig:
    """Return the architecture by the command line, the stride by the counts' description."""
    chosen = options(fixture)
    stride = stride_of(fixture.settings["crop"][0], feature_grid(fixture)[0])
    return model_config(
        chosen["arch"].rpartition(".")[2],
        stride,
        memory="--memory" in fixture.settings["argv"].split(),
        momentum=float(chosen["mem_momentum"]),
    )


def described_method(fixture: Fixture) -> Method:
    chosen = options(fixture)
    weights = LossConfig(
        read=float(chosen["mem_readloss"]),
        divergence=float(chosen["mem_divloss"]),
        classification=float(chosen["mem_clsloss"]),
    )
    function = re.search(r"train\.py:(\w+)", fixture.about["what"])[1]
    return methods.get(METHODS[function])(TrainConfig(loss=weights))


def drawn_batch(fixture: Fixture, iteration: int) -> Batch:
    settings = fixture.settings
    shape = (settings["B_per_domain"], settings["domains"])
    images = fixture.input(f"it{iteration}/input", (*shape, 3, *settings["crop"]))
    labels = fixture.input(f"it{iteration}/label", (*shape, *settings["crop"]))
    split = settings["splits"][iteration - 1] if settings["splits"] else ((), ())
    return Batch(images.transpose(0, 1), labels.transpose(0, 1).long(), *map(tuple, split))


@every_file("iteration")
def test_iterations(fixture: Fixture) -> None:
    config = described_model(fixture)
    segmenter = rule_segmenter(config, fixture.seed, fixture.dtype)
    method = described_method(fixture)
    optimizer = torch.optim.SGD(segmenter.parameters(), momentum=0.9, weight_decay=5e-4)
    iterations = int(re.match(r"(\d+) iteration", fixture.about["what"])[1])
    for iteration in range(1, iterations + 1):
        computed, facts = run_iteration(fixture, iteration, segmenter, method, optimizer)
        fixture.compare(under(f"it{iteration}", computed))
        for key, fact in facts.items():
            fixture.compare_fact(f"it{iteration}_{key}", fact)


def run_iteration(
    fixture: Fixture,
    iteration: int,
    segmenter: Segmenter,
    method: Method,
    optimizer: torch.optim.Optimizer,
) -> tuple[Computed, dict[str, object]]:
    rates = learning_rates(fixture, iteration)
    batch = drawn_batch(fixture, iteration)
    optimizer.zero_grad()
    optimizer.param_groups[0]["lr"] = rates["lr"]
    witness = Witness(segmenter, method)
    with witness.watching():
        context = StepContext(segmenter, batch, rates["inner_lr"])
        result = method.step(context)
        total = gradients(segmenter)
        optimizer.step()
        method.refresh(context)
    computed = {
        **rates,
        **loss_terms(result),
        **domain_counts(fixture, batch),
        **witness.memories(),
        **under("inner_grad", witness.inner),
        **under("outer_grad", {name: total[name] - g for name, g in witness.inner.items()}),
        **under("grad", total),
        "grad_global_norm": torch.stack([g.norm() for g in total.values()]).norm(),
        **under("param", official_parameters(segmenter)),
        **under("bn/buf", running_statistics(segmenter)),
    }
    return computed, witness.facts()


def learning_rates(fixture: Fixture, iteration: int) -> dict[str, float]:
    schedule = OptimConfig(lr=float(options(fixture)["lr"]))
    run = schedule.decay_span  # its length does not matter to this schedule
    return {
        "lr": learning_rate(schedule, iteration - 1, run),
        "lr_next": learning_rate(schedule, iteration, run),
        "inner_lr": inner_learning_rate(schedule, iteration - 1, run),
    }


def loss_terms(result: StepResult) -> Computed:
    """Return the losses by phase; the original has 0 for those that do not apply."""
    computed: dict[str, Tensor | float] = {}
    for phase, losses in result.losses.items():
        terms = {"div": 0.0, "cls": 0.0, **losses.terms, "total": losses.total}
        computed |= under("loss" if phase == "train" else phase, terms)
    return computed


def domain_counts(fixture: Fixture, batch: Batch) -> Computed:
    height, width = feature_grid(fixture)
    return {
        f"soft_counts_domain{domain}": soft_counts(labels, (height, width), fixture.dtype)
        for domain, labels in enumerate(batch.labels)
    }
