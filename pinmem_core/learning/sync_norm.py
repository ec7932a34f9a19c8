"""Batch norm over the images of all ranks, so that N ranks normalise as one would."""

import torch
from torch import Tensor, nn

from pinmem_core.model.calibrated_norm import CalibratedBatchNorm
from pinmem_core.ranks import sum_over_ranks, world_size


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Return `module` with its batch norms synchronised: on CUDA by torch if it can, else by us."""
    calibrated = any(isinstance(part, CalibratedBatchNorm) for part in module.modules())
    if device.type == "cuda" and not calibrated:
        synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return synchronized
    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(part, name, _of(child))
    return module


def _of(norm: nn.BatchNorm2d) -> "PortableSyncBatchNorm":
    synchronized = PortableSyncBatchNorm(norm.num_features, norm.eps, norm.momentum)
    synchronized.to(norm.weight)
    if isinstance(norm, CalibratedBatchNorm):
        synchronized.own_share = norm.own_share
    synchronized.load_state_dict(norm.state_dict())
    return synchronized


class PortableSyncBatchNorm(CalibratedBatchNorm):
    """What `torch.nn.SyncBatchNorm` does, which knows CUDA only, and no image's own statistics.

    Every rank must hold equally many values.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W) by the mean and variance over all ranks, in training."""
        if not self.training:
            return super().forward(input)
        count = world_size() * input.numel() // input.shape[1]
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        mean = sum_over_ranks(values.sum(dim=(0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = sum_over_ranks(centred.square().sum(dim=(0, 2, 3))) / count
        if self.track_running_stats:
            self._remember(mean.detach(), variance.detach() * count / max(1, count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
