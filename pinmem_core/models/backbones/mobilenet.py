"""torchvision's MobileNetV2 up to its last inverted residual (320 channels)."""

from collections.abc import Mapping
from itertools import pairwise

import torchvision
from torch import Tensor, nn

from pinmem_core.models.backbones.base import Backbone, dilate
from pinmem_core.models.weights import torchvision_weights

_ENDS = (0, 4, 7, 14, 18)
"""Blocks at which the stages begin and end; those of 96 and 320 channels end the last two."""


class MobileNetV2(Backbone):
    """torchvision's MobileNetV2 without its last 1x1 convolution, as in DeepLabV3+.

    Args:
        output_stride: Output stride, 8, 16 or 32; below 32 the last stages are dilated.
    """

    name = "mobilenet_v2"
    unused_weights = ("features.18.", "classifier.")

    def __init__(self, output_stride: int) -> None:
        super().__init__()
        self.channels = [24, 32, 96, 320]
        self.strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        self.features = torchvision.models.mobilenet_v2(weights=None).features[: _ENDS[-1]]
        for stride, stage in zip((16, 32), self.stages()[2:], strict=True):
            if stride > output_stride:
                for block in stage.children():
                    dilate(block, stride // output_stride)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features of 24, 32, 96 and 320 channels."""
        features = [images]
        for stage in self.stages():
            features.append(stage(features[-1]))
        return features[1:]

    def stem_end(self) -> nn.Module:
        """Return the first block, of 16 channels and stride 2."""
        return self.features[1]

    def stages(self) -> list[nn.Module]:
        """Return the blocks of each stride; the third stage ends at 96 channels."""
        return [self.features[a:b] for a, b in pairwise(_ENDS)]

    def published(self, name: str, download: bool) -> Mapping[str, Tensor] | None:
        """Return torchvision's weights."""
        return torchvision_weights(self.name, name, download)


BACKBONES = {"mobilenet_v2": MobileNetV2}
