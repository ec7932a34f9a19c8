"""What a learning method is. All else (data, schedule, optimizer, checkpoint) is shared."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pinmem_core.config import LossConfig
from pinmem_core.learning.losses import Losses
from pinmem_core.loading import Batch
from pinmem_core.model import Segmenter


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

    Attributes:
        memory: Whether the network needs a memory, may have one (by default not), or must not.
        meta: Whether domains are split into meta-train and meta-test, which takes two or more.
    """

    memory: ClassVar[Literal["required", "optional", "none"]]
    meta: ClassVar[bool]

    def __init__(self, weights: LossConfig) -> None:
        self.weights = weights

    @abstractmethod
    def step(self, segmenter: Segmenter, batch: Batch, inner_lr: float) -> StepResult:
        """Add the batch's gradient to the `grad` of the segmenter's parameters.

        Parameters and memory are as before when it returns; batch-norm statistics have moved once.

        Args:
            segmenter: Is put into training mode.
            batch: Of all domains.
            inner_lr: Step size α of an inner step.
        """

    def refresh(self, segmenter: Segmenter, batch: Batch) -> None:  # noqa: B027
        """Bring the memory up to date after the optimizer has stepped; does nothing without one."""


@torch.no_grad()
def rewrite_memory(segmenter: Segmenter, images: Tensor, labels: Tensor) -> None:
    """Write a batch into the memory as the network now sees it, in evaluation mode."""
    assert segmenter.memory is not None
    segmenter.eval()
    memory = segmenter.memory
    memory.slots.copy_(memory.write(segmenter.encode(images).feature, labels, memory.slots))
