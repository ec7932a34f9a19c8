"""`pinmem`: meta-learn to write a domain-agnostic memory and to read it in an unseen domain.

First-order version of the paper's algorithm (docs/method.md, section 4). θ are the parameters, M is
the memory.
"""

import torch

from pinmem_core.methods.base import Method, StepContext, StepResult, rewrite_memory
from pinmem_core.methods.losses import training_losses
from pinmem_core.methods.meta import unrecorded_statistics


class PinMem(Method):
    """Pin the Memory: meta-learning with a memory of the classes (Kim et al., CVPR 2022)."""

    memory = "required"
    meta = True
    cuda_graph = True
    cached_features = True

    def step(self, context: StepContext) -> StepResult:
        """Accumulate the gradients of the inner loss at θ and of the outer loss at θ'."""
        segmenter, batch = context.segmenter, context.batch
        memory = segmenter.memory
        assert memory is not None
        segmenter.train()
        images, labels = batch.of(batch.meta_train)

        # Inner: read and write M in the meta-train domains.
        inner = training_losses(segmenter, *self.inner_batch(batch), self.config.loss, write=True)
        self.backward(segmenter, inner.total)

        # θ' = θ - α ∇L_inner
        with self.fast_weights(segmenter, context.inner_lr), unrecorded_statistics(segmenter):
            # M' = write(M) at θ', with a graph to the write map only.
            with torch.no_grad():
                feature = segmenter.encode(images).feature
            rewritten = memory.write(feature, labels, memory.slots)

            # Outer: read M' in the meta-test domains.
            outer = training_losses(
                segmenter, *batch.of(batch.meta_test), self.config.loss, slots=rewritten
            )
            self.backward(segmenter, self.config.meta.outer_weight * outer.total, last=True)
        return StepResult({"inner": inner, "outer": outer}, rewritten)

    def refresh(self, context: StepContext) -> None:
        """Set M to write(M) with the updated network and the batch of the inner step."""
        rewrite_memory(context.segmenter, *self.inner_batch(context.batch))


METHODS = {"pinmem": PinMem}
