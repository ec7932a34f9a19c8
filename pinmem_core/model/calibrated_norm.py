"""Batch norm that meets an unseen domain halfway: some of each image's own statistics.

The running mean and variance are those of the sources; at dusk or behind another lens, features are
shifted as a whole. Mixing in the image's own (Schneider et al., NeurIPS 2020, for one image) takes
part of the shift away, and needs neither training nor other images.
"""

import torch
from torch import Tensor, nn


class CalibratedBatchNorm(nn.BatchNorm2d):
    """Batch norm; in evaluation with mean and variance (1 - share)·running + share·own.

    Attributes:
        own_share: In 0..1; 0 is plain batch norm.
    """

    own_share: float = 0.0

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W), in evaluation each image for itself."""
        one_position = input.shape[2] == 1 and input.shape[3] == 1  # has no variance of its own
        if self.training or not self.own_share or one_position:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        variance, mean = torch.var_mean(input, dim=(2, 3), correction=0)
        variance = torch.lerp(self.running_var, variance.to(self.running_var), self.own_share)
        mean = torch.lerp(self.running_mean, mean.to(self.running_mean), self.own_share)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return torch.addcmul(
            shift[..., None, None].to(input), input, scale[..., None, None].to(input)
        )


def calibrate(module: nn.Module, own_share: float) -> None:
    """Have every batch norm of `module` take that share of an image's own statistics."""
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = CalibratedBatchNorm
        if isinstance(part, CalibratedBatchNorm):
            part.own_share = own_share
