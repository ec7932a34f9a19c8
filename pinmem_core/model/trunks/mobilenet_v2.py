"""MobileNetV2 of torchvision, up to its last inverted residual (320 channels)."""

import torchvision
from torch import Tensor, nn

from pinmem_core.model.trunk import Trunk, TrunkFeatures, dilate

_LOW, _AUX, _TOP = 4, 14, 18  # features[:n] end at stride 4, at the 96-channel stage, at the end
_STAGES = {16: (7, 14), 32: (14, 18)}
"""Blocks that first reach a stride of 16 and 32, up to the next stage."""


class MobileNetV2(Trunk):
    """torchvision's MobileNetV2 without its last 1x1 convolution, as DeepLabV3+ uses it.

    Args:
        output_stride: 8, 16 or 32; below 32 the last stages are dilated.
    """

    low_channels, aux_channels, top_channels = 24, 96, 320
    unused_weights = ("features.18.", "classifier.")

    def __init__(self, output_stride: int) -> None:
        super().__init__()
        self.features = torchvision.models.mobilenet_v2(weights=None).features[:_TOP]
        for stride, blocks in _STAGES.items():
            if stride > output_stride:
                for block in self.features[slice(*blocks)]:
                    dilate(block, stride // output_stride)

    def forward(self, images: Tensor) -> TrunkFeatures:
        """Return the features at stride 4, of the 96-channel stage, and of the last block."""
        low = self.features[:_LOW](images)
        aux = self.features[_LOW:_AUX](low)
        return TrunkFeatures(low, aux, self.features[_AUX:](aux))

    def finest(self) -> list[nn.Module]:
        """Return the blocks up to stride 4."""
        return list(self.features[:_LOW])


TRUNKS = {"mobilenet_v2": MobileNetV2}
