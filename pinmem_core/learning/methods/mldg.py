"""`mldg`: first-order meta-learning for domain generalization (Li et al., AAAI 2018)."""

from torch import Tensor

from pinmem_core.learning.losses import training_losses
from pinmem_core.learning.meta import unrecorded_statistics
from pinmem_core.learning.method import Method, StepResult
from pinmem_core.loading import Batch
from pinmem_core.model import Segmenter


class MLDG(Method):
    """A step that lowers the meta-train loss and should lower the meta-test loss after it."""

    memory = "none"
    meta = True

    def step(self, segmenter: Segmenter, batch: Batch, inner_lr: float | Tensor) -> StepResult:
        """Add the gradient of the meta-train loss at θ and of the meta-test loss at θ'."""
        segmenter.train()
        inner = training_losses(segmenter, *self.inner_batch(batch), self.weights)
        self.backward(segmenter, inner.total)
        with self.fast_weights(segmenter, inner_lr), unrecorded_statistics(segmenter):
            outer = training_losses(segmenter, *batch.of(batch.meta_test), self.weights)
            self.backward(segmenter, self.meta_config.outer_weight * outer.total, last=True)
        return StepResult({"inner": inner, "outer": outer})


METHODS = {"mldg": MLDG}
