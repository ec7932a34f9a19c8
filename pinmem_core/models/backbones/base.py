"""The interface of a backbone."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class BackboneFeatures(NamedTuple):
    """Features at three depths.

    Attributes:
        low: Fine feature for the decoder, (N, low_channels, H/4, W/4).
        aux: Feature for the auxiliary head, (N, aux_channels, ·, ·).
        top: Deepest feature for the decoder, (N, top_channels, H/stride, W/stride).
    """

    low: Tensor
    aux: Tensor
    top: Tensor


class Backbone(nn.Module, ABC):
    """A backbone with torchvision's parameter names.

    Attributes:
        low_channels: Channels of `BackboneFeatures.low`.
        aux_channels: Channels of `BackboneFeatures.aux`.
        top_channels: Channels of `BackboneFeatures.top`.
        unused_weights: Name prefixes of published weights that the backbone does not use.
    """

    low_channels: int
    aux_channels: int
    top_channels: int
    unused_weights: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, images: Tensor) -> BackboneFeatures:
        """Return the features of normalised images (N, 3, H, W)."""

    def blocks(self) -> list[nn.Module]:
        """Return the modules whose activations can be recomputed: the children of each stage."""
        return [block for stage in _stages(self) for block in stage.children()]

    def finest(self) -> list[nn.Module]:
        """Return the modules with the largest activations: those of the first stage."""
        for stage in _stages(self):  # a ModuleList has no forward pass
            return list(stage) if isinstance(stage, nn.ModuleList) else [stage]
        return []


def _stages(module: nn.Module) -> list[nn.Module]:
    """Return the outermost containers of blocks, at any depth of the module."""
    stages: list[nn.Module] = []
    for child in module.children():
        holds_blocks = isinstance(child, _CONTAINERS) and not all(
            isinstance(part, _CONTAINERS) for part in child.children()
        )
        stages += [child] if holds_blocks else _stages(child)
    return stages


_CONTAINERS = (nn.Sequential, nn.ModuleList)


def dilate(layer: nn.Module, dilation: int) -> None:
    """Keep the resolution of a stage: set stride 1, and dilate its 3x3 convolutions.

    The first block is dilated as well, as in DeepLab; torchvision's own option leaves it undilated.
    """
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation, dilation)
