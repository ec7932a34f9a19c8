"""Batch norm over the images of all ranks, so that N ranks normalise as one would."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pinmem_core.model.calibrated_norm import CalibratedBatchNorm
from pinmem_core.ranks import gather_over_ranks, sum_over_ranks, world_size


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

    The forward pass takes one collective, and so does the backward pass. Every rank must hold
    equally many values.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W) by the mean and variance over all ranks, in training."""
        if not self.training:
            return super().forward(input)
        mean, variance = _moments_of_all(input.detach())
        if self.track_running_stats:
            count = _count_of_all(input)
            self._remember(mean, variance * count / max(1, count - 1))
        output: Tensor = _Normalize.apply(input, self.weight, self.bias, mean, variance, self.eps)
        return output

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


def _count_of_all(input: Tensor) -> int:
    """Return how many values a channel has on all ranks."""
    return world_size() * input.numel() // input.shape[1]


def _widened(tensor: Tensor) -> Tensor:
    """Return half-precision values as float32, and others as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@torch.no_grad()
def _moments_of_all(input: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance (C,) over all ranks.

    Each rank sums squares about its own mean. The means and variances of equally many values then
    combine without cancellation, and one collective brings both.
    """
    values = _widened(input)
    mean = values.mean(dim=(0, 2, 3))
    variance = (values - mean[:, None, None]).square_().mean(dim=(0, 2, 3))
    means, variances = gather_over_ranks(torch.stack([mean, variance])).unbind(dim=1)
    mean = means.mean(dim=0)
    return mean, (variances + (means - mean).square()).mean(dim=0)


class _Normalize(torch.autograd.Function):
    """Normalises by moments over all ranks; the gradient flows through these moments, too."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(input, weight, mean, variance)
        ctx.eps = eps
        return F.batch_norm(input, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, variance = ctx.saved_tensors
        values, count = _widened(input), _count_of_all(input)
        # The gradients with constant moments: two of them are the sums that the moments' need.
        direct, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            _widened(gradients[0]), values, weight, mean, variance, None, None, False, ctx.eps,
            [True, True, True],
        )  # fmt: skip
        of_all = sum_over_ranks(torch.stack([of_weight, of_bias])) / count
        inverse = (variance + ctx.eps).rsqrt()
        slope = weight * inverse.square() * of_all[0]
        offset = weight * inverse * of_all[1] - slope * mean
        direct -= torch.addcmul(offset[:, None, None], values, slope[:, None, None])
        return direct.to(input.dtype), of_weight, of_bias, None, None, None
