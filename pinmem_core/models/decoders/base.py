"""The interface of a decoder: the feature for the memory, and logits of the refined feature."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PixelLoss = Callable[[Tensor, Tensor], Tensor]


class Decoder(nn.Module, ABC):
    """Map features of several strides to logits, with the memory between `project` and `decode`.

    Constructors take `(channels, strides, dim, num_classes)`: channels and strides of the features,
    channels of the feature for the memory, and number of classes.

    Attributes:
        dim: Channels of the feature for the memory.
        auxiliary: Whether training adds an auxiliary head on the second coarsest feature.
    """

    dim: int
    auxiliary: bool = True

    @abstractmethod
    def project(self, features: list[Tensor]) -> Tensor:
        """Return the feature F (N, dim, h, w) that the memory reads and writes."""

    @abstractmethod
    def decode(self, refined: Tensor, features: list[Tensor]) -> Any:
        """Return the output for the refined feature F' (N, dim, h, w).

        The output is any nest of tensors that `predict` and `loss` understand; here, logits.
        """

    def predict(self, output: Any) -> Tensor:
        """Return logits (N, K, ·, ·) of an output of `decode`."""
        logits: Tensor = output
        return logits

    def loss(self, output: Any, labels: Tensor, pixel_loss: PixelLoss) -> dict[str, Tensor]:
        """Return the loss terms of an output of `decode` by name; training sums them.

        Args:
            output: Output of `decode`.
            labels: Labels, (N, H, W), in 0..K-1; 255 is ignored.
            pixel_loss: Loss of logits (N, K, ·, ·) and labels that the configuration asks for.
        """
        return {"seg": pixel_loss(self.predict(output), labels)}


class QueryDecoder(Decoder):
    """A decoder of queries, which an adapter may derive from what it learns."""

    @abstractmethod
    def use_queries(self, queries: Callable[[], Tensor]) -> None:
        """Replace the learned queries.

        Args:
            queries: Function that returns queries (Q, dim) with a gradient.
        """


class AuxiliaryHead(nn.Sequential):
    """Logits from the second coarsest feature, for the auxiliary loss in training.

    Args:
        channels: Channels of the feature.
        num_classes: Number of classes, K.
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


class Fusion(nn.Sequential):
    """Layers over a fine map, concatenated with a coarse map that is resized to it."""

    def forward(  # type: ignore[override]
        self, fine: Tensor, coarse: Tensor
    ) -> Tensor:
        """Return the output for a fine map (N, C, H, W) and a coarse one (N, D, h, w)."""
        coarse = resize(coarse, fine.shape[-2:]).to(fine.dtype)  # half with autocast
        fused: Tensor = super().forward(torch.cat([fine, coarse], dim=1))
        return fused


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Return convolution (no bias, "same" padding), batch norm and ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def initialize(module: nn.Module) -> None:
    """Initialise convolutions with Kaiming-normal weights (fan-in, ReLU) and zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def resize(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize (N, C, ·, ·) bilinearly with aligned corners."""
    if maps.is_cuda and maps.requires_grad:
        return resize_by_products(maps, size)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


def resize_by_products(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize (N, C, h, w) to (N, C, H, W) like `resize`, with one matrix product per side.

    The backward pass also takes two products. On a GPU, torch's own backward pass sums H·W values
    into h·w with atomic operations. This is slow for small h·w, and not deterministic.
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


@cache  # training has few sizes, and a CUDA graph keeps reading the tensors that it captured
def _interpolation(small: int, large: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix (large, small) of linear interpolation with aligned corners."""
    units = torch.eye(small, device=device, dtype=torch.promote_types(dtype, torch.float))
    resized = F.interpolate(units[None], size=large, mode="linear", align_corners=True)
    return resized[0].T.contiguous().to(dtype)
