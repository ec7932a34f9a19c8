"""Widely dilated convolutions on small maps, as sums over those taps that reach into the map.

At a crop of 256 px DeepLab's branch of rate 18 sees 16 by 16 pixels: all of its taps but the middle
one read padding. The CPU's convolution multiplies by those zeros, and its backward pass takes a
fourth of an iteration for it.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class DilatedConv(nn.Conv2d):
    """A stride-1 convolution that keeps the size; equals `nn.Conv2d` up to rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, C, h, w), tap by tap where many taps lie outside."""
        size = (input.shape[-2], input.shape[-1])
        if 2 * min(self.dilation) < max(size):
            return super().forward(input)
        return _sum_of_taps(input, self.weight, self.dilation, size)


def speed_up_dilation(module: nn.Module) -> None:
    """Have the widely dilated 3 x 3 convolutions of `module` leave out taps that see padding."""
    for part in module.modules():
        if type(part) is nn.Conv2d and _is_wide(part):
            part.__class__ = DilatedConv


def _is_wide(conv: nn.Conv2d) -> bool:
    return (
        min(conv.dilation) > 4
        and conv.padding == conv.dilation
        and (conv.kernel_size, conv.stride, conv.groups) == ((3, 3), (1, 1), 1)
        and conv.bias is None
    )


def _sum_of_taps(
    input: Tensor, weight: Tensor, dilation: tuple[int, ...], size: tuple[int, int]
) -> Tensor:
    """Add up 1 x 1 convolutions of shifted parts of the map, each put back where it belongs."""
    height, width = size
    taps = weight.movedim(1, 3).flatten(1, 2).unbind(1)
    total = F.conv2d(input, taps[4][:, :, None, None])
    for index, tap in enumerate(taps):
        down, right = (index // 3 - 1) * dilation[0], (index % 3 - 1) * dilation[1]
        if index == 4 or abs(down) >= height or abs(right) >= width:
            continue
        seen = input[..., max(0, down) : height + min(0, down), :]
        seen = seen[..., max(0, right) : width + min(0, right)]
        part = F.conv2d(seen, tap[:, :, None, None])
        margins = (max(0, -right), max(0, right), max(0, -down), max(0, down))
        total = total + F.pad(part, margins)
    return total
