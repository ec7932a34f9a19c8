"""Convolutions that are faster on a CPU and give the same result up to rounding.

`conv_then_resize` convolves a coarse map before resizing it instead of afterwards. Resizing with
aligned corners is linear in the rows and in the columns. Let U and V be the resize matrices, and
U_i and V_j the same matrices shifted by the kernel taps i and j, with rows of zeros for padding.
Then, for a coarse map X,

    conv(U X V^T) = sum over i and j of U_i (X W_ij) V_j^T

so the channels are mixed at the coarse resolution. U_i and V_j are sparse and applied block by
block.

`DilatedConv` skips the taps of a dilated convolution that see only padding. At a crop of 256 px,
the branch of rate 18 of DeepLab has 16 by 16 pixels, so only its middle tap sees the map.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pinmem_core.models.decoders.base import Fusion

_BLOCK = 32
"""Rows or columns of the large map per block; the fastest size in measurements."""


class EarlyFusion(Fusion):
    """A `Fusion` whose first layer convolves the coarse map before it is resized."""

    def forward(  # type: ignore[override]
        self, fine: Tensor, coarse: Tensor
    ) -> Tensor:
        """Return the output for a fine map (N, C, H, W) and a coarse one (N, D, h, w)."""
        conv = self[0]
        if fine.dtype != coarse.dtype or not isinstance(conv, nn.Conv2d):
            return super().forward(fine, coarse)
        fused = conv_then_resize(conv, fine, coarse)
        for layer in list(self)[1:]:
            fused = layer(fused)
        return fused


def speed_up_fusion(module: nn.Module) -> None:
    """Make every `Fusion` of `module` convolve before it resizes; for prediction on a CPU."""
    for part in module.modules():
        if type(part) is Fusion:
            part.__class__ = EarlyFusion


def conv_then_resize(conv: nn.Conv2d, fine: Tensor, coarse: Tensor) -> Tensor:
    """Return `conv` of a fine map concatenated with a coarse map that is resized to it.

    Args:
        conv: Convolution with a square odd kernel and "same" padding, not dilated, not grouped.
        fine: Fine map, (N, C, H, W).
        coarse: Coarse map, (N, D, h, w).

    Returns:
        Output of the convolution, (N, O, H, W).
    """
    weights = conv.weight.split([fine.shape[1], coarse.shape[1]], dim=1)
    of_fine = F.conv2d(fine, weights[0], conv.bias, padding=conv.kernel_size[0] // 2)
    return of_fine + conv_of_resized(coarse, weights[1], (fine.shape[2], fine.shape[3]))


def conv_of_resized(coarse: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a map (N, D, h, w) to `size`, and convolve it with a weight (O, D, k, k)."""
    images, channels, height, width = coarse.shape
    out, _, kernel, _ = weight.shape
    mixing = weight.permute(2, 1, 3, 0).reshape(kernel, channels, kernel * out)
    mixed = coarse.permute(0, 2, 3, 1).reshape(images, 1, height * width, channels) @ mixing
    mixed = mixed.reshape(images, kernel, height, width * kernel * out)

    rows = mixed.new_empty(images, size[0], width * kernel * out)
    for block, seen, taps in _blocks(_taps(height, size[0], kernel, coarse), height):
        source = mixed[:, :, seen].flatten(1, 2)
        rows[:, block] = taps.transpose(1, 2).flatten(1).expand(images, -1, -1) @ source

    rows = rows.reshape(images * size[0], width, kernel * out)
    pixels = mixed.new_empty(images * size[0], size[1], out)
    for block, seen, taps in _blocks(_taps(width, size[1], kernel, coarse), width):
        source = rows[:, seen].reshape(len(rows), -1, out)
        pixels[:, block] = taps.flatten(1).expand(len(rows), -1, -1) @ source
    return pixels.reshape(images, *size, out).permute(0, 3, 1, 2)


def _taps(small: int, large: int, kernel: int, like: Tensor) -> Tensor:
    """Return the weight of each source for each place and kernel tap, (large, small, kernel)."""
    one_each = torch.eye(small, dtype=like.dtype, device=like.device)[None]
    resizing = F.interpolate(one_each, size=large, mode="linear", align_corners=True)[0].T
    return F.pad(resizing, (0, 0, kernel // 2, kernel // 2)).unfold(0, kernel, 1)


def _blocks(taps: Tensor, small: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield blocks of the large map: their places, the sources that they use, and the taps."""
    large, reach = taps.shape[0], taps.shape[2] // 2
    step = (small - 1) / max(1, large - 1)
    for start in range(0, large, _BLOCK):
        stop = min(start + _BLOCK, large)
        first = max(0, math.floor((start - reach) * step))
        last = min(small - 1, math.ceil((stop - 1 + reach) * step))
        seen = slice(first, last + 1)
        yield slice(start, stop), seen, taps[start:stop, seen]


class DilatedConv(nn.Conv2d):
    """A stride-1 convolution with "same" padding; equals `nn.Conv2d` up to rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, C, h, w); tap by tap if the dilation is large for the map."""
        size = (input.shape[-2], input.shape[-1])
        if 2 * min(self.dilation) < max(size):
            return super().forward(input)
        return _sum_of_taps(input, self.weight, self.dilation, size)


def speed_up_dilation(module: nn.Module) -> None:
    """Make the 3 x 3 convolutions of `module` with large dilation skip taps that see padding."""
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
    """Sum 1 x 1 convolutions of shifted parts of the map."""
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
