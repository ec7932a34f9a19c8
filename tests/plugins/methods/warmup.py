"""A method that learns from the first domain only: one file makes it known."""

from pinmem_core.data.batches import Batch
from pinmem_core.methods.base import Method, StepResult
from pinmem_core.methods.losses import training_losses
from pinmem_core.models import Segmenter


class FirstDomain(Method):
    memory = "none"
    meta = False

    def step(self, segmenter: Segmenter, batch: Batch, inner_lr: float) -> StepResult:
        segmenter.train()
        losses = training_losses(segmenter, *batch.of([0]), self.weights)
        self.backward(segmenter, losses.total)
        return StepResult({"train": losses})


METHODS = {"first-domain": FirstDomain}
