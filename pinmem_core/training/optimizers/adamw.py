"""AdamW (Loshchilov and Hutter, ICLR 2019), the usual optimizer for foundation backbones."""

import torch

from pinmem_core.config import OptimConfig
from pinmem_core.training.optimizers import Groups


def adamw(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    """Return fused AdamW with moments of zeros."""
    on_cuda = any(parameter.is_cuda for group in groups for parameter in group["params"])
    optimizer = torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, fused=True, capturable=on_cuda
    )
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer


OPTIMIZERS = {"adamw": adamw}
