"""The interface of a training method. Data, schedule, optimizer and checkpoint are shared."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from pinmem_core.config import LossConfig, MetaConfig
from pinmem_core.data.batches import Batch
from pinmem_core.distributed import averaged_gradients
from pinmem_core.methods.losses import Losses
from pinmem_core.methods.meta import fast_weights
from pinmem_core.models import Segmenter


@dataclass(frozen=True)
class StepResult:
    """Result of one iteration.

    Attributes:
        losses: Losses by phase, e.g. "inner" and "outer".
        rewritten: Memory (K, D) that the outer phase read; None where the method writes none.
    """

    losses: Mapping[str, Losses]
    rewritten: Tensor | None = None


class Method(ABC):
    """A method of training on several domains.

    Args:
        weights: Weights of the loss terms.
        scaler: Loss scaler for the backward passes; None for no scaling.
        meta: Settings of a meta step.

    Attributes:
        memory: Whether the network must have a memory, may have one (by default none), or must not.
        meta: Whether domains are split into meta-train and meta-test; this needs two or more.
        averages_last: Whether the last backward pass of a step averages over the processes. A
            caller that sums the gradients of several steps sets it to False, and averages the sum.
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
        """Accumulate the gradients of one batch into `.grad`, with `backward`.

        Parameters and memory stay unchanged. The running statistics of batch norm move once.

        Args:
            segmenter: Network to train; it is set to training mode.
            batch: Batch of all domains.
            inner_lr: Step size α of an inner step.
        """

    def backward(self, segmenter: Segmenter, loss: Tensor, *, last: bool = False) -> None:
        """Accumulate the (scaled) gradients of the mean loss over all processes.

        Args:
            segmenter: Network whose gradients are accumulated.
            loss: Loss of this process.
            last: Whether the rest of the step does not read the gradients. If `averages_last` is
                off, each process then keeps its own gradients.
        """
        if last and not self.averages_last:
            self.scaler.scale(loss).backward()
            return
        with averaged_gradients(segmenter):
            self.scaler.scale(loss).backward()

    def fast_weights(
        self, segmenter: Segmenter, inner_lr: float | Tensor
    ) -> AbstractContextManager[None]:
        """Return a context in which the parameters are θ' = θ - α·∇θ."""
        scale = self.scaler.scale(next(segmenter.parameters()).new_ones(()))
        return fast_weights(segmenter, inner_lr / scale)

    def inner_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return images and labels of the inner step: of the meta-train domains, or of all."""
        return batch.all() if self.meta_config.inner == "all" else batch.of(batch.meta_train)

    def refresh(self, segmenter: Segmenter, batch: Batch) -> None:  # noqa: B027
        """Update the memory after the optimizer's step; do nothing without a memory."""


@torch.no_grad()
def rewrite_memory(segmenter: Segmenter, images: Tensor, labels: Tensor) -> None:
    """Write a batch into the memory with the current network in evaluation mode."""
    assert segmenter.memory is not None
    segmenter.eval()
    memory = segmenter.memory
    memory.slots.copy_(memory.write(segmenter.encode(images).feature, labels, memory.slots))
