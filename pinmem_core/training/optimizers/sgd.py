"""SGD with momentum, the optimizer of the paper."""

import torch

from pinmem_core.config import OptimConfig
from pinmem_core.sharding import is_sharded
from pinmem_core.training.optimizers import Groups


def sgd(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    """Return SGD with momentum buffers of zeros: fused, unless parameters are sharded."""
    sharded = any(is_sharded(parameter) for group in groups for parameter in group["params"])
    optimizer = torch.optim.SGD(  # torch has no fused SGD for sharded parameters
        groups, lr=config.lr, momentum=config.momentum, fused=not sharded, foreach=sharded
    )
    for group in optimizer.param_groups:
        for parameter in group["params"]:  # a skipped first step would not create them
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


OPTIMIZERS = {"sgd": sgd}
