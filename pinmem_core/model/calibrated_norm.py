"""Batch norm that meets an unseen domain halfway: some of each image's own statistics.

The running mean and variance are those of the sources; at dusk or behind another lens, features are
shifted as a whole. Mixing in the image's own (Schneider et al., NeurIPS 2020, for one image) takes
part of the shift away, and needs neither training nor other images.
"""

import torch
from torch import Tensor, nn

_SUMMED = 4096
"""Pixels whose statistics torch sums up in float32: few enough for small errors."""


class CalibratedBatchNorm(nn.BatchNorm2d):
    """Batch norm; in evaluation with mean and variance (1 - share)·running + share·own.

    Attributes:
        own_share: In 0..1; 0 is plain batch norm.
        inplace: Whether in evaluation the result takes the input's place, as that of `nn.ReLU` may.
    """

    own_share: float = 0.0
    inplace: bool = False

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W), in evaluation each image for itself."""
        one_position = input.shape[2] == 1 and input.shape[3] == 1  # has no variance of its own
        if self.training or not self.own_share or one_position:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        variance, mean = _moments(input)
        share: float | Tensor = self.own_share
        if torch.compiler.is_exporting() and type(input.shape[2]) is not int:  # a free size
            share = self.own_share * _several_positions(input).to(self.running_var)
        variance = torch.lerp(self.running_var, variance.to(self.running_var), share)
        mean = torch.lerp(self.running_mean, mean.to(self.running_mean), share)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        scale, shift = (values[..., None, None].to(input) for values in (scale, shift))
        return torch.addcmul(shift, input, scale, out=input if self.inplace else None)


def _moments(input: Tensor) -> tuple[Tensor, Tensor]:
    """Return variance and mean (N, C) of each image's own pixels."""
    if torch.compiler.is_exporting():
        return _moments_in_two_stages(input)
    side_by_side = input.is_contiguous(memory_format=torch.channels_last)
    if input.device.type != "cpu" or not side_by_side or torch.compiler.is_compiling():
        return torch.var_mean(input, dim=(2, 3), correction=0)
    each = [_moments_by_parts(image) for image in input.split(1)]
    variance, mean = (torch.stack(values) for values in zip(*each, strict=True))
    return variance, mean


def _moments_in_two_stages(input: Tensor) -> tuple[Tensor, Tensor]:
    """Return variance and mean (N, C) as means over columns of means over rows.

    Runtimes other than torch add up all values of a mean one by one in float32, which loses digits
    as the area grows.
    """
    input = input.float()
    mean = input.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
    variance = (input - mean).square().mean(dim=3).mean(dim=2)
    return variance, mean[:, :, 0, 0]


def _several_positions(input: Tensor) -> Tensor:
    """Return whether there is more than one position, (1, 1): decided when the file is run."""
    one = torch.ones_like(input[:1, :1])
    return one[:, :, :, 0].sum(dim=2) * one[:, :, 0].sum(dim=2) > 1


def _moments_by_parts(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return variance and mean (C,) of an image (1, C, H, W), as var_mean at a 30th of its time."""
    parts = image.split(max(1, _SUMMED // image.shape[3]), dim=2)
    found = [torch.batch_norm_update_stats(part, None, None, 0) for part in parts]
    means, variances = (torch.stack(values).double() for values in zip(*found, strict=True))
    rows = torch.tensor([part.shape[2] for part in parts], dtype=torch.float64)
    shares = rows / rows.sum()
    mean = shares @ means
    return shares @ (variances + means.square()) - mean.square(), mean


def calibrate(module: nn.Module, own_share: float) -> None:
    """Have every batch norm of `module` take that share of an image's own statistics."""
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = CalibratedBatchNorm
        if isinstance(part, CalibratedBatchNorm):
            part.own_share = own_share
