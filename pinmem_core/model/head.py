"""What a segmenter needs from a head: a feature for the memory, and logits from what comes back."""

from abc import ABC, abstractmethod
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pinmem_core.model.trunk import TrunkFeatures


class Head(nn.Module, ABC):
    """The part between a trunk and the logits, open in the middle for the memory.

    Constructors take `(low_channels, top_channels, output_stride, dim, num_classes)`.

    Attributes:
        early: Whether maps may be convolved before they are resized, where that is less work: the
            same but for rounding.
    """

    early: bool = False

    @abstractmethod
    def project(self, features: TrunkFeatures) -> Tensor:
        """Return the feature F (N, dim, h, w), non-negative, that the memory reads and writes."""

    @abstractmethod
    def decode(self, refined: Tensor, features: TrunkFeatures) -> Tensor:
        """Return logits (N, K, ·, ·) of the refined feature F' (N, dim, h, w)."""


class AuxiliaryHead(nn.Sequential):
    """Logits from the trunk's third stage; a second loss in training, unused afterwards.

    Args:
        channels: Of `TrunkFeatures.aux`.
        num_classes: K.
    """

    WIDTH = 512

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(channels, self.WIDTH, 3, padding=1),
            nn.BatchNorm2d(self.WIDTH),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.1),
            nn.Conv2d(self.WIDTH, num_classes, 1),
        )
        initialize(self)


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Return convolution (no bias, same size), batch norm and ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def initialize(module: nn.Module) -> None:
    """Initialise convolutions Kaiming-normal (fan-in, ReLU) and their biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def resize(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize (N, C, ·, ·) bilinearly with aligned corners, as everywhere in the network."""
    if maps.is_cuda and maps.requires_grad:
        return resize_by_products(maps, size)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


def resize_by_products(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize (N, C, h, w) to (N, C, H, W) as `resize` does, by a matrix product for each side.

    The backward pass is two products, too. Torch's own adds up H·W values into h·w by atomic
    operations on a GPU: slow where h·w is small, and in an order that changes from run to run.
    """
    rows, columns = (
        _interpolation(small, large, maps.dtype, maps.device)
        for small, large in zip(maps.shape[-2:], size, strict=True)
    )
    images, channels, height, width = maps.shape
    if not maps.is_contiguous(memory_format=torch.channels_last):
        return rows @ (maps @ columns.T)
    pixels = rows @ maps.permute(0, 2, 3, 1).reshape(images, height, width * channels)
    pixels = columns @ pixels.reshape(images * size[0], width, channels)
    return pixels.reshape(images, *size, channels).permute(0, 3, 1, 2)


@cache  # training has few sizes, and a CUDA graph may go on reading what it has seen
def _interpolation(small: int, large: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix (large, small) of linear interpolation with aligned corners."""
    units = torch.eye(small, device=device, dtype=torch.promote_types(dtype, torch.float))
    resized = F.interpolate(units[None], size=large, mode="linear", align_corners=True)
    return resized[0].T.contiguous().to(dtype)
