"""Convolving a coarse map before it is resized, instead of afterwards.

Resizing with aligned corners is linear in the rows and in the columns. Be U and V the matrices that
do it, and U_i and V_j the same moved by the kernel's taps i and j, with rows of zeros for padding;
then of a coarse map X

    conv(U X V^T) = sum over i and j of U_i (X W_ij) V_j^T

so that the channels are mixed where there are few pixels. U_i and V_j are nearly all zeros: they
are applied block by block.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BLOCK = 32
"""Rows, or columns, of the large map that are computed at once; found by trying."""


def conv_beside_resized(conv: nn.Conv2d, fine: Tensor, coarse: Tensor) -> Tensor:
    """Return `conv` of a fine map and, in the channels behind it, a coarse one resized to it.

    Args:
        conv: Square and odd; keeps the size; neither dilated nor grouped.
        fine: (N, C, H, W).
        coarse: (N, D, h, w).

    Returns:
        (N, O, H, W).
    """
    weights = conv.weight.split([fine.shape[1], coarse.shape[1]], dim=1)
    of_fine = F.conv2d(fine, weights[0], conv.bias, padding=conv.kernel_size[0] // 2)
    return of_fine + conv_of_resized(coarse, weights[1], (fine.shape[2], fine.shape[3]))


def conv_of_resized(coarse: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the convolution, by a weight (O, D, k, k), of a map (N, D, h, w) resized to `size`."""
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
    """Return (large, small, kernel): how much of each source a kernel's taps see at each place."""
    one_each = torch.eye(small, dtype=like.dtype, device=like.device)[None]
    resizing = F.interpolate(one_each, size=large, mode="linear", align_corners=True)[0].T
    return F.pad(resizing, (0, 0, kernel // 2, kernel // 2)).unfold(0, kernel, 1)


def _blocks(taps: Tensor, small: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield places of the large map, the sources that they see, and their taps."""
    large, reach = taps.shape[0], taps.shape[2] // 2
    step = (small - 1) / max(1, large - 1)
    for start in range(0, large, _BLOCK):
        stop = min(start + _BLOCK, large)
        first = max(0, math.floor((start - reach) * step))
        last = min(small - 1, math.ceil((stop - 1 + reach) * step))
        seen = slice(first, last + 1)
        yield slice(start, stop), seen, taps[start:stop, seen]
