"""`mldg`: first-order meta-learning for domain generalization (Li et al., AAAI 2018)."""

from torch import Tensor

from pinmem_core.data.batches import Batch
from pinmem_core.methods.base import Method, StepResult
from pinmem_core.methods.losses import training_losses
from pinmem_core.methods.meta import unrecorded_statistics
from pinmem_core.models import Segmenter


class MLDG(Method):
    """MLDG: minimise the meta-train loss, and the meta-test loss after an inner step."""

    memory = "none"
    meta = True

    def step(self, segmenter: Segmenter, batch: Batch, inner_lr: float | Tensor) -> StepResult:
        """Accumulate the gradients of the meta-train loss at θ and of the meta-test loss at θ'."""
        segmenter.train()
        inner = training_losses(segmenter, *self.inner_batch(batch), self.weights)
        self.backward(segmenter, inner.total)
        with self.fast_weights(segmenter, inner_lr), unrecorded_statistics(segmenter):
            outer = training_losses(segmenter, *batch.of(batch.meta_test), self.weights)
            self.backward(segmenter, self.meta_config.outer_weight * outer.total, last=True)
        return StepResult({"inner": inner, "outer": outer})


METHODS = {"mldg": MLDG}
