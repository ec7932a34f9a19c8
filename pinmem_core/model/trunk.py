"""What a segmenter needs from a backbone, whatever it is."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class TrunkFeatures(NamedTuple):
    """Features at three depths.

    Attributes:
        low: (N, low_channels, H/4, W/4), for the decoder's fine path.
        aux: (N, aux_channels, ·, ·), for the auxiliary head.
        top: (N, top_channels, H/stride, W/stride), for the head.
    """

    low: Tensor
    aux: Tensor
    top: Tensor


class Trunk(nn.Module, ABC):
    """A backbone whose parameters carry torchvision's names.

    Attributes:
        low_channels: Of `TrunkFeatures.low`.
        aux_channels: Of `TrunkFeatures.aux`.
        top_channels: Of `TrunkFeatures.top`.
        unused_weights: Prefixes of published weights that the trunk has no place for.
    """

    low_channels: int
    aux_channels: int
    top_channels: int
    unused_weights: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, images: Tensor) -> TrunkFeatures:
        """Return the features of normalised images (N, 3, H, W)."""

    def blocks(self) -> list[nn.Module]:
        """Return the parts whose activations can be recomputed: the children of each stage."""
        return [block for stage in _stages(self) for block in stage.children()]

    def finest(self) -> list[nn.Module]:
        """Return the parts among these with the largest activations: those of the first stage."""
        for stage in _stages(self):  # a list of modules has no forward pass of its own
            return list(stage) if isinstance(stage, nn.ModuleList) else [stage]
        return []


def _stages(module: nn.Module) -> list[nn.Module]:
    """Return the outermost containers of blocks, wherever a wrapped network holds them."""
    found: list[nn.Module] = []
    for child in module.children():
        holds_blocks = isinstance(child, _CONTAINERS) and not all(
            isinstance(part, _CONTAINERS) for part in child.children()
        )
        found += [child] if holds_blocks else _stages(child)
    return found


_CONTAINERS = (nn.Sequential, nn.ModuleList)


def dilate(layer: nn.Module, dilation: int) -> None:
    """Keep a stage's resolution instead of halving it: dilated 3x3 convolutions, stride 1.

    Every 3x3 convolution is dilated, the first block's too (DeepLab; torchvision's own switch
    leaves the first block undilated).
    """
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation, dilation)
