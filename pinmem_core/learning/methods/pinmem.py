"""`pinmem`: meta-learn to write a domain-agnostic memory and to read it in an unseen domain.

The paper's algorithm (docs/method.md, section 4), first order. θ are the parameters, M the memory.
"""

import torch
from torch import Tensor

from pinmem_core.learning.losses import training_losses
from pinmem_core.learning.meta import unrecorded_statistics
from pinmem_core.learning.method import Method, StepResult, rewrite_memory
from pinmem_core.loading import Batch
from pinmem_core.model import Segmenter


class PinMem(Method):
    """Pin the Memory (Kim et al., CVPR 2022)."""

    memory = "required"
    meta = True

    def step(self, segmenter: Segmenter, batch: Batch, inner_lr: float | Tensor) -> StepResult:
        """Add the gradients of the inner loss at θ and of the outer loss at θ'."""
        memory = segmenter.memory
        assert memory is not None
        segmenter.train()
        images, labels = batch.of(batch.meta_train)

        # Inner: read and write M in the meta-train domains.
        inner = training_losses(segmenter, *self.inner_batch(batch), self.weights, write=True)
        self.backward(segmenter, inner.total)

        # θ' = θ - α ∇L_inner
        with self.fast_weights(segmenter, inner_lr), unrecorded_statistics(segmenter):
            # M' = write(M) at θ', with a graph to the write map alone.
            with torch.no_grad():
                feature = segmenter.encode(images).feature
            rewritten = memory.write(feature, labels, memory.slots)

            # Outer: read M' in the meta-test domains.
            outer = training_losses(
                segmenter, *batch.of(batch.meta_test), self.weights, slots=rewritten
            )
            self.backward(segmenter, self.meta_config.outer_weight * outer.total, last=True)
        return StepResult({"inner": inner, "outer": outer}, rewritten)

    def refresh(self, segmenter: Segmenter, batch: Batch) -> None:
        """M <- write(M) by the updated network, from the meta-train domains."""
        rewrite_memory(segmenter, *self.inner_batch(batch))


METHODS = {"pinmem": PinMem}
