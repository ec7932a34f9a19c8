"""DeepLabV3+ (Chen et al., ECCV 2018) and DeepLabV2 (TPAMI 2018), as the paper uses them."""

import torch
from torch import Tensor, nn

from pinmem_core.models.decoders.base import Decoder, Fusion, conv_bn_relu, initialize, resize

_V3_RATES = (6, 12, 18)  # at output stride 16
_V2_RATES = (6, 12, 18, 24)  # at every output stride
_FINE_DIM = 48


class DeepLabV3Plus(Decoder):
    """Atrous spatial pyramid pooling, and a decoder that fuses the finest feature.

    Args:
        channels: Channels of the features; the finest and the coarsest are used.
        strides: Strides of the features; the last scales the rates of the pyramid.
        dim: Channels of the feature for the memory, and of the decoder.
        num_classes: Number of classes, K.
    """

    def __init__(self, channels: list[int], strides: list[int], dim: int, num_classes: int) -> None:
        super().__init__()
        self.dim = dim
        top = channels[-1]
        self.pooled = conv_bn_relu(top, dim)
        rates = [rate * 16 // strides[-1] for rate in _V3_RATES]
        dilated = [conv_bn_relu(top, dim, kernel=3, dilation=rate) for rate in rates]
        self.pyramid = nn.ModuleList([conv_bn_relu(top, dim), *dilated])
        self.projection = conv_bn_relu((len(self.pyramid) + 1) * dim, dim)
        self.fine = conv_bn_relu(channels[0], _FINE_DIM)
        self.fusion = Fusion(
            *conv_bn_relu(_FINE_DIM + dim, dim, kernel=3), *conv_bn_relu(dim, dim, kernel=3)
        )
        self.classifier = nn.Conv2d(dim, num_classes, 1)
        initialize(self)

    def project(self, features: list[Tensor]) -> Tensor:
        """Return F, the pyramid over the coarsest feature, projected to `dim` channels."""
        top = features[-1]
        pooled = self.pooled(top.mean(dim=(2, 3), keepdim=True))
        branches = [branch(top) for branch in self.pyramid]
        branches.insert(0, resize(pooled, top.shape[-2:]).to(branches[0].dtype))
        projected: Tensor = self.projection(torch.cat(branches, dim=1))
        return projected

    def decode(self, refined: Tensor, features: list[Tensor]) -> Tensor:
        """Return logits at the resolution of the finest feature."""
        logits: Tensor = self.classifier(self.fusion(self.fine(features[0]), refined))
        return logits


class DeepLabV2(Decoder):
    """The sum of four dilated branches over the coarsest feature.

    Args:
        channels: Channels of the features.
        strides: Strides of the features; the rates do not depend on them.
        dim: Channels of the feature for the memory, and of the decoder.
        num_classes: Number of classes, K.
    """

    def __init__(self, channels: list[int], strides: list[int], dim: int, num_classes: int) -> None:
        super().__init__()
        self.dim = dim
        self.branches = nn.ModuleList(
            [conv_bn_relu(channels[-1], dim, kernel=3, dilation=rate) for rate in _V2_RATES]
        )
        self.fusion = conv_bn_relu(dim, dim, kernel=3)
        self.classifier = nn.Conv2d(dim, num_classes, 1)
        initialize(self)

    def project(self, features: list[Tensor]) -> Tensor:
        """Return F, the sum of the branches."""
        return torch.stack([branch(features[-1]) for branch in self.branches]).sum(dim=0)

    def decode(self, refined: Tensor, features: list[Tensor]) -> Tensor:
        """Return logits at the resolution of `refined`."""
        logits: Tensor = self.classifier(self.fusion(refined))
        return logits


DECODERS = {"deeplabv2": DeepLabV2, "deeplabv3plus": DeepLabV3Plus}
