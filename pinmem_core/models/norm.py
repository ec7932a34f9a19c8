"""Batch norm: test-time batch norm (alpha-BN), and batch norm synchronised over processes.

The running mean and variance come from the sources. In an unseen domain, all features are shifted.
Mixing in the statistics of the test image (Schneider et al., NeurIPS 2020, with one image) removes
part of the shift, without training and without other images.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pinmem_core.distributed import all_gather_tensor, all_reduce_sum, world_size
from pinmem_core.errors import ConfigError

_KNOWN = ("torch.", "pinmem_core.")
"""Modules with batch norms that do nothing else."""
_SUMMED = 4096
"""Pixels that torch sums in float32 at a time; the limit keeps rounding errors small."""


class AlphaBatchNorm(nn.BatchNorm2d):
    """Batch norm with (1 - alpha)·running + alpha·image statistics in evaluation.

    Attributes:
        alpha: Weight of the image statistics, in 0..1; 0 is plain batch norm.
        inplace: Whether the output overwrites the input in evaluation, as in `nn.ReLU`.
    """

    alpha: float = 0.0
    inplace: bool = False

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W); in evaluation, each image by its statistics."""
        one_position = input.shape[2] == 1 and input.shape[3] == 1  # has no variance
        if self.training or not self.alpha or one_position:
            return super().forward(input)
        if torch.compiler.is_exporting():
            return self._forward_exported(input)
        assert self.running_mean is not None and self.running_var is not None
        variance, mean = _moments(input)
        alpha = self.alpha
        variance = torch.lerp(self.running_var, variance.to(self.running_var), alpha)
        mean = torch.lerp(self.running_mean, mean.to(self.running_mean), alpha)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        scale, shift = (values[..., None, None].to(input) for values in (scale, shift))
        return torch.addcmul(shift, input, scale, out=input if self.inplace else None)

    def _forward_exported(self, input: Tensor) -> Tensor:
        """Normalise each image by its statistics, in few operators.

        Runtimes other than torch sum all values of a mean one by one in float32, which loses
        precision on large maps: a mean is computed over rows first and columns second.
        """
        assert self.running_mean is not None and self.running_var is not None
        values, sides = input.float(), input.shape[2:]
        mean = values.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
        variance = (values - mean).square().mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
        alpha: float | Tensor = self.alpha
        if type(sides[0]) is not int:  # a dynamic size; one position has no variance
            alpha = self.alpha * (torch.scalar_tensor(sides[0] * sides[1]) > 1).to(mean)
        own = (self.running_var, self.running_mean, self.weight, self.bias)
        running_var, running_mean, weight, bias = (each[:, None, None].float() for each in own)
        variance = running_var + alpha * (variance - running_var)
        mean = running_mean + alpha * (mean - running_mean)
        scale = weight * (variance + self.eps).rsqrt()
        shift = bias - mean * scale
        return torch.addcmul(shift.to(input), input, scale.to(input))


def _moments(input: Tensor) -> tuple[Tensor, Tensor]:
    """Return variance and mean (N, C) over the pixels of each image."""
    channels_last = input.is_contiguous(memory_format=torch.channels_last)
    if input.device.type != "cpu" or not channels_last or torch.compiler.is_compiling():
        return torch.var_mean(input, dim=(2, 3), correction=0)
    each = [_moments_by_parts(image) for image in input.split(1)]
    variance, mean = (torch.stack(values) for values in zip(*each, strict=True))
    return variance, mean


def _moments_by_parts(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return variance and mean (C,) of an image (1, C, H, W), 30 times as fast as `var_mean`."""
    parts = image.split(max(1, _SUMMED // image.shape[3]), dim=2)
    moments = [torch.batch_norm_update_stats(part, None, None, 0) for part in parts]
    means, variances = (torch.stack(values).double() for values in zip(*moments, strict=True))
    rows = torch.tensor([part.shape[2] for part in parts], dtype=torch.float64)
    shares = rows / rows.sum()
    mean = shares @ means
    return shares @ (variances + means.square()) - mean.square(), mean


def set_alpha(module: nn.Module, alpha: float) -> None:
    """Set the weight of the image statistics in every batch norm of `module`."""
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = AlphaBatchNorm
        if isinstance(part, AlphaBatchNorm):
            part.alpha = alpha


def has_batch_norm(module: nn.Module) -> bool:
    """Return whether `module` has batch norms that `set_alpha` changes."""
    return any(type(part) in (nn.BatchNorm2d, AlphaBatchNorm) for part in module.modules())


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Return `module` with synchronised batch norms; on CUDA without alpha-BN, those of torch.

    Raises:
        ConfigError: A batch norm does more than normalise, such as those of timm's EfficientNets.
    """
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d) and not type(part).__module__.startswith(_KNOWN):
            raise ConfigError(
                f"batch norms of the class {type(part).__name__} cannot be synchronised over "
                "processes.",
                "Train in one process, or with another backbone.",
            )
    mixes = any(isinstance(part, AlphaBatchNorm) for part in module.modules())
    if device.type == "cuda" and not mixes:
        synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return synchronized
    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(part, name, _synchronized(child))
    return module


def _synchronized(norm: nn.BatchNorm2d) -> "PortableSyncBatchNorm":
    synchronized = PortableSyncBatchNorm(norm.num_features, norm.eps, norm.momentum)
    synchronized.to(norm.weight)
    if isinstance(norm, AlphaBatchNorm):
        synchronized.alpha = norm.alpha
    synchronized.load_state_dict(norm.state_dict())
    return synchronized


class PortableSyncBatchNorm(AlphaBatchNorm):
    """`torch.nn.SyncBatchNorm` for any device, with test-time batch norm.

    The forward pass and the backward pass need one collective each. All processes must have the
    same number of values.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W); in training, with mean and variance over all processes."""
        if not self.training:
            return super().forward(input)
        mean, variance = _moments_of_all(input.detach())
        if self.track_running_stats:
            count = _count_of_all(input)
            self._update_running(mean, variance * count / max(1, count - 1))
        output: Tensor = _Normalize.apply(input, self.weight, self.bias, mean, variance, self.eps)
        return output

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


def _count_of_all(input: Tensor) -> int:
    """Return the number of values of a channel over all processes."""
    return world_size() * input.numel() // input.shape[1]


def full_precision(values: Tensor) -> Tensor:
    """Return half-precision `values` as float32, and other values unchanged."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


@torch.no_grad()
def _moments_of_all(input: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance (C,) over all processes.

    Each process sums squared differences from its own mean. The means and variances of equal
    numbers of values then combine without cancellation, in one collective.
    """
    values = full_precision(input)
    mean = values.mean(dim=(0, 2, 3))
    variance = (values - mean[:, None, None]).square_().mean(dim=(0, 2, 3))
    means, variances = all_gather_tensor(torch.stack([mean, variance])).unbind(dim=1)
    mean = means.mean(dim=0)
    return mean, (variances + (means - mean).square()).mean(dim=0)


class _Normalize(torch.autograd.Function):
    """Normalise with moments over all processes; gradients also flow through these moments."""

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
        values, count = full_precision(input), _count_of_all(input)
        # Gradients for constant moments; those of weight and bias are the sums needed below.
        direct, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            full_precision(gradients[0]), values, weight, mean, variance, None, None, False,
            ctx.eps, [True, True, True],
        )  # fmt: skip
        of_all = all_reduce_sum(torch.stack([of_weight, of_bias])) / count
        inverse = (variance + ctx.eps).rsqrt()
        slope = weight * inverse.square() * of_all[0]
        offset = weight * inverse * of_all[1] - slope * mean
        direct -= torch.addcmul(offset[:, None, None], values, slope[:, None, None])
        return direct.to(input.dtype), of_weight, of_bias, None, None, None
