"""DeepLabV2 (Chen et al., TPAMI 2018), as the paper uses it with ResNet-101."""

import torch
from torch import Tensor, nn

from pinmem_core.models.backbones.base import BackboneFeatures
from pinmem_core.models.decoders.base import Decoder, conv_bn_relu, initialize

_RATES = (6, 12, 18, 24)  # for every output stride


class DeepLabV2(Decoder):
    """The sum of four dilated branches, without a fine path.

    Args:
        low_channels: Unused: this decoder has no fine path.
        top_channels: Channels of `BackboneFeatures.top`.
        output_stride: Unused: the rates are fixed.
        dim: Channels of the feature for the memory, and of the decoder.
        num_classes: Number of classes, K.
    """

    def __init__(
        self, low_channels: int, top_channels: int, output_stride: int, dim: int, num_classes: int
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [conv_bn_relu(top_channels, dim, kernel=3, dilation=rate) for rate in _RATES]
        )
        self.fusion = conv_bn_relu(dim, dim, kernel=3)
        self.classifier = nn.Conv2d(dim, num_classes, 1)
        initialize(self)

    def project(self, features: BackboneFeatures) -> Tensor:
        """Return F, the sum of the branches over the backbone's top feature."""
        return torch.stack([branch(features.top) for branch in self.branches]).sum(dim=0)

    def decode(self, refined: Tensor, features: BackboneFeatures) -> Tensor:
        """Return logits at the resolution of `refined`."""
        logits: Tensor = self.classifier(self.fusion(refined))
        return logits


DECODERS = {"deeplabv2": DeepLabV2}
