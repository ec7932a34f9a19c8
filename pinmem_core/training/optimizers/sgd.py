"""SGD with momentum, the optimizer of the paper."""

import torch

from pinmem_core.config import OptimConfig
from pinmem_core.training.optimizers import Groups


def sgd(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    """Return fused SGD with momentum buffers of zeros."""
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    for group in optimizer.param_groups:
        for parameter in group["params"]:  # a skipped first step would not create them
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


OPTIMIZERS = {"sgd": sgd}
