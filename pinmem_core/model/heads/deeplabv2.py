"""DeepLabV2 (Chen et al., TPAMI 2018) as the paper uses it with ResNet-101."""

import torch
from torch import Tensor, nn

from pinmem_core.model.head import Head, conv_bn_relu, initialize
from pinmem_core.model.trunk import TrunkFeatures

_RATES = (6, 12, 18, 24)  # at output stride 8, and kept at any other


class DeepLabV2(Head):
    """The sum of four dilated branches, and no fine path.

    Args:
        low_channels: Not used: this head has no fine path.
        top_channels: Of `TrunkFeatures.top`.
        output_stride: Not used: the rates are fixed.
        dim: Channels of the feature that the memory sees, and of the decoder.
        num_classes: K.
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

    def project(self, features: TrunkFeatures) -> Tensor:
        """Return F: the sum of the branches over the trunk's top feature."""
        return torch.stack([branch(features.top) for branch in self.branches]).sum(dim=0)

    def decode(self, refined: Tensor, features: TrunkFeatures) -> Tensor:
        """Return logits at the resolution of `refined`."""
        logits: Tensor = self.classifier(self.fusion(refined))
        return logits


HEADS = {"deeplabv2": DeepLabV2}
