"""`two-views`: train on two views of each crop, and make their predictions agree."""

import torch
from pydantic import Field

from pinmem_core.config import Settings
from pinmem_core.methods.base import Method, StepContext, StepResult
from pinmem_core.methods.losses import Losses, consistency_loss, training_pass


class TwoViews(Method):
    """Two views: train on two views of each crop, and keep both predictions similar.

    L = CE(x) + CE(x') + λ·JS(p, p') for the views x and x'. CE includes the auxiliary loss. The
    colours of x follow `augmentation.strong`, so "none" makes it the weak view; x' is always
    strong. Both pass the network as one batch.
    """

    memory = "none"
    meta = False
    views = 2
    cuda_graph = True

    class Config(Settings):
        """Settings of the method."""

        weight: float = Field(10.0, ge=0)
        """Weight λ of the consistency of both predictions, by the mean over pixels."""

    def step(self, context: StepContext) -> StepResult:
        """Accumulate the gradient of the loss on both views into `.grad`."""
        segmenter, batch = context.segmenter, context.batch
        segmenter.train()
        images = torch.cat([batch.view(number).all()[0] for number in range(self.views)])
        labels = batch.all()[1]
        losses, output = training_pass(
            segmenter, images, torch.cat([labels, labels]), self.config.loss
        )
        # The losses are means over both views, of equal size; twice the mean is the sum.
        consistency = consistency_loss(*output.logits.chunk(2))
        total = 2 * losses.total + self.settings.weight * consistency
        self.backward(segmenter, total, last=True)
        return StepResult({"train": Losses({**losses.terms, "js": consistency}, total)})


METHODS = {"two-views": TwoViews}
