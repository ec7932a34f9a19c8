"""torchvision's MobileNetV2 up to its last inverted residual (320 channels)."""

import torchvision
from torch import Tensor, nn

from pinmem_core.models.backbones.base import Backbone, BackboneFeatures, dilate

_LOW, _AUX, _TOP = 4, 14, 18  # features[:n] end at stride 4, at the 96-channel stage, at the end
_STAGES = {16: (7, 14), 32: (14, 18)}
"""Range of the blocks that first reach a stride of 16 and of 32."""


class MobileNetV2(Backbone):
    """torchvision's MobileNetV2 without its last 1x1 convolution, as in DeepLabV3+.

    Args:
        output_stride: Output stride, 8, 16 or 32; below 32 the last stages are dilated.
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

    def forward(self, images: Tensor) -> BackboneFeatures:
        """Return the features at stride 4, after the 96-channel stage, and after the last block."""
        low = self.features[:_LOW](images)
        aux = self.features[_LOW:_AUX](low)
        return BackboneFeatures(low, aux, self.features[_AUX:](aux))

    def finest(self) -> list[nn.Module]:
        """Return the blocks up to stride 4."""
        return list(self.features[:_LOW])


BACKBONES = {"mobilenet_v2": MobileNetV2}
