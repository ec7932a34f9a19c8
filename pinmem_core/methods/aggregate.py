"""`aggregate`: the baseline, one plain step on a batch of all domains; the memory is optional."""

from pinmem_core.methods.base import Method, StepContext, StepResult, rewrite_memory
from pinmem_core.methods.losses import Losses, training_losses


class Aggregate(Method):
    """The baseline: minimise the loss over batches of all sources."""

    memory = "optional"
    meta = False
    cuda_graph = True
    cached_features = True

    def step(self, context: StepContext) -> StepResult:
        """Accumulate the gradients of the losses on all domains into `.grad`."""
        context.segmenter.train()
        losses = self.losses(context)
        self.backward(context.segmenter, losses.total, last=True)
        return StepResult({"train": losses})

    def losses(self, context: StepContext) -> Losses:
        """Return the losses on all domains; a subclass may change the forward pass, or add some."""
        images, labels = context.batch.all()
        segmenter = context.segmenter
        write = segmenter.memory is not None
        return training_losses(segmenter, images, labels, self.config.loss, write=write)

    def refresh(self, context: StepContext) -> None:
        """Write the batch into the memory; the write of the step served its losses only."""
        if context.segmenter.memory is not None:
            rewrite_memory(context.segmenter, *context.batch.all())


METHODS = {"aggregate": Aggregate}
