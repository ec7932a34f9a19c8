"""`pinmem`: meta-learn to write a domain-agnostic memory and to read it in an unseen domain.

First-order version of the paper's algorithm (docs/method.md, section 4). θ are the parameters, M is
the memory.
"""

import torch
from torch import Tensor

from pinmem_core.data.batches import Batch
from pinmem_core.methods.base import Method, StepResult, rewrite_memory
from pinmem_core.methods.losses import training_losses
from pinmem_core.methods.meta import unrecorded_statistics
from pinmem_core.models import Segmenter


class PinMem(Method):
    """Pin the Memory (Kim et al., CVPR 2022)."""

    memory = "required"
    meta = True

    def step(self, segmenter: Segmenter, batch: Batch, inner_lr: float | Tensor) -> StepResult:
        """Accumulate the gradients of the inner loss at θ and of the outer loss at θ'."""
        memory = segmenter.memory
        assert memory is not None
        segmenter.train()
        images, labels = batch.of(batch.meta_train)

        # Inner: read and write M in the meta-train domains.
        inner = training_losses(segmenter, *self.inner_batch(batch), self.weights, write=True)
        self.backward(segmenter, inner.total)

        # θ' = θ - α ∇L_inner
        with self.fast_weights(segmenter, inner_lr), unrecorded_statistics(segmenter):
            # M' = write(M) at θ', with a graph to the write map only.
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
        """Set M to write(M) with the updated network and the batch of the inner step."""
        rewrite_memory(segmenter, *self.inner_batch(batch))


METHODS = {"pinmem": PinMem}
