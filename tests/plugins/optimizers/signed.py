"""An optimizer in one file that creates its state, a tensor and a number, in its first step."""

import torch


class Signed(torch.optim.Optimizer):
    """Step along the sign of the momentum, with steps that shrink."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(momentum=torch.zeros_like(parameter), steps=0)
                state["steps"] += 1
                state["momentum"].lerp_(parameter.grad, 0.1)
                parameter.sub_(state["momentum"].sign(), alpha=group["lr"] / state["steps"])


OPTIMIZERS = {"signed": lambda groups, config: Signed(groups, {"lr": config.lr})}
