"""`aggregate`: one batch of all domains, a plain step. The baseline; may carry a memory."""

from torch import Tensor

from pinmem_core.learning.losses import training_losses
from pinmem_core.learning.method import Method, StepResult, rewrite_memory
from pinmem_core.loading import Batch
from pinmem_core.model import Segmenter


class Aggregate(Method):
    """Empirical risk minimisation over the union of the sources."""

    memory = "optional"
    meta = False

    def step(self, segmenter: Segmenter, batch: Batch, inner_lr: float | Tensor) -> StepResult:
        """Add the gradient of the losses on all domains."""
        segmenter.train()
        images, labels = batch.all()
        losses = training_losses(
            segmenter, images, labels, self.weights, write=segmenter.memory is not None
        )
        self.backward(segmenter, losses.total, last=True)
        return StepResult({"train": losses})

    def refresh(self, segmenter: Segmenter, batch: Batch) -> None:
        """Write the batch into the memory; what the step wrote for its losses is dropped."""
        if segmenter.memory is not None:
            rewrite_memory(segmenter, *batch.all())


METHODS = {"aggregate": Aggregate}
