"""A method in one file, with settings of its own, state, and a second view of each image."""

import torch

from pinmem_core.config import Settings
from pinmem_core.methods.base import Method, StepContext, StepResult
from pinmem_core.methods.losses import Losses, training_losses


class Consistency(Method):
    """Train on one view; make the features of both views agree, relative to the usual distance."""

    memory = "none"
    meta = False
    views = 2

    class Config(Settings):
        weight: float = 0.1
        decay: float = 0.5

    def setup(self, segmenter):
        self.distance = torch.ones((), device=next(segmenter.parameters()).device)

    def step(self, context: StepContext) -> StepResult:
        segmenter = context.segmenter
        segmenter.train()
        losses = training_losses(segmenter, *context.batch.all(), self.config.loss)
        features = [
            segmenter.encode(context.batch.view(number).all()[0]).feature for number in (0, 1)
        ]
        distance = (features[0] - features[1]).square().mean()
        total = losses.total + self.settings.weight * distance / self.distance
        self.backward(segmenter, total, last=True)
        self.distance.lerp_(distance.detach(), 1 - self.settings.decay)
        return StepResult({"train": Losses({**losses.terms, "views": distance}, total)})

    def state_dict(self):
        return {"distance": self.distance}

    def load_state_dict(self, state):
        self.distance.copy_(state["distance"])


METHODS = {"consistency": Consistency}
