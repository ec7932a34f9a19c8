"""What a learning method is. All else (data, schedule, optimizer, checkpoint) is shared."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from pinmem_core.config import LossConfig, MetaConfig
from pinmem_core.learning.losses import Losses
from pinmem_core.learning.meta import fast_weights
from pinmem_core.loading import Batch
from pinmem_core.model import Segmenter
from pinmem_core.ranks import averaged_gradients


@dataclass(frozen=True)
class StepResult:
    """What a method computed in one iteration.

    Attributes:
        losses: By phase, e.g. "inner" and "outer".
        rewritten: The memory that the outer phase read, where the method rewrites it.
    """

    losses: Mapping[str, Losses]
    rewritten: Tensor | None = None


class Method(ABC):
    """A way of learning from several domains.

    Args:
        weights: Of the loss terms.
        scaler: Scales losses before their backward pass; None leaves them as they are.
        meta: What a meta step does.

    Attributes:
        memory: Whether the network needs a memory, may have one (by default not), or must not.
        meta: Whether domains are split into meta-train and meta-test, which takes two or more.
        averages_last: Whether the last backward pass of a step averages over the ranks. One who
            sums the gradients of several steps sets it to False, and averages their sum.
    """

    memory: ClassVar[Literal["required", "optional", "none"]]
    meta: ClassVar[bool]

    def __init__(
        self,
        weights: LossConfig,
        scaler: GradScaler | None = None,
        meta: MetaConfig = MetaConfig(),  # noqa: B008
    ) -> None:
        self.weights = weights
        self.meta_config = meta
        self.scaler = scaler or GradScaler(enabled=False)
        self.averages_last = True

    @abstractmethod
    def step(self, segmenter: Segmenter, batch: Batch, inner_lr: float | Tensor) -> StepResult:
        """Add the batch's gradient to the `grad` of the segmenter's parameters, by `backward`.

        Parameters and memory are as before when it returns; batch-norm statistics have moved once.

        Args:
            segmenter: Is put into training mode.
            batch: Of all domains.
            inner_lr: Step size α of an inner step.
        """

    def backward(self, segmenter: Segmenter, loss: Tensor, *, last: bool = False) -> None:
        """Add the (scaled) gradient of the ranks' mean loss to that of the parameters.

        Args:
            segmenter: Has the parameters.
            loss: Of this rank.
            last: Whether nothing in the rest of the step reads the gradient. Then each rank may
                keep its own where `averages_last` is off.
        """
        if last and not self.averages_last:
            self.scaler.scale(loss).backward()
            return
        with averaged_gradients(segmenter):
            self.scaler.scale(loss).backward()

    def fast_weights(
        self, segmenter: Segmenter, inner_lr: float | Tensor
    ) -> AbstractContextManager[None]:
        """Have the parameters at θ' = θ - α·∇θ inside a `with` block."""
        scale = self.scaler.scale(next(segmenter.parameters()).new_ones(()))
        return fast_weights(segmenter, inner_lr / scale)

    def inner_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the images and labels of the inner step: the meta-train domains', or all."""
        return batch.all() if self.meta_config.inner == "all" else batch.of(batch.meta_train)

    def refresh(self, segmenter: Segmenter, batch: Batch) -> None:  # noqa: B027
        """Bring the memory up to date after the optimizer has stepped; does nothing without one."""


@torch.no_grad()
def rewrite_memory(segmenter: Segmenter, images: Tensor, labels: Tensor) -> None:
    """Write a batch into the memory as the network now sees it, in evaluation mode."""
    assert segmenter.memory is not None
    segmenter.eval()
    memory = segmenter.memory
    memory.slots.copy_(memory.write(segmenter.encode(images).feature, labels, memory.slots))
