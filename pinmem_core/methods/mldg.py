"""`mldg`: first-order meta-learning for domain generalization (Li et al., AAAI 2018)."""

from pinmem_core.methods.base import Method, StepContext, StepResult
from pinmem_core.methods.losses import training_losses
from pinmem_core.methods.meta import unrecorded_statistics


class MLDG(Method):
    """MLDG: minimise the meta-train loss, and the meta-test loss after an inner step."""

    memory = "none"
    meta = True
    cuda_graph = True
    cached_features = True

    def step(self, context: StepContext) -> StepResult:
        """Accumulate the gradients of the meta-train loss at θ and of the meta-test loss at θ'."""
        segmenter, batch = context.segmenter, context.batch
        segmenter.train()
        inner = training_losses(segmenter, *self.inner_batch(batch), self.config.loss)
        self.backward(segmenter, inner.total)
        with self.fast_weights(segmenter, context.inner_lr), unrecorded_statistics(segmenter):
            outer = training_losses(segmenter, *batch.of(batch.meta_test), self.config.loss)
            self.backward(segmenter, self.config.meta.outer_weight * outer.total, last=True)
        return StepResult({"inner": inner, "outer": outer})


METHODS = {"mldg": MLDG}
