"""`aggregate`: the baseline, one plain step on a batch of all domains; the memory is optional."""

from torch import Tensor

from pinmem_core.data.batches import Batch
from pinmem_core.methods.base import Method, StepResult, rewrite_memory
from pinmem_core.methods.losses import training_losses
from pinmem_core.models import Segmenter


class Aggregate(Method):
    """Empirical risk minimisation over the union of the sources."""

    memory = "optional"
    meta = False

    def step(self, segmenter: Segmenter, batch: Batch, inner_lr: float | Tensor) -> StepResult:
        """Accumulate the gradients of the losses on all domains into `.grad`."""
        segmenter.train()
        images, labels = batch.all()
        losses = training_losses(
            segmenter, images, labels, self.weights, write=segmenter.memory is not None
        )
        self.backward(segmenter, losses.total, last=True)
        return StepResult({"train": losses})

    def refresh(self, segmenter: Segmenter, batch: Batch) -> None:
        """Write the batch into the memory; the write of the step served its losses only."""
        if segmenter.memory is not None:
            rewrite_memory(segmenter, *batch.all())


METHODS = {"aggregate": Aggregate}
