"""DeepLabV3+ (Chen et al., ECCV 2018) and DeepLabV2 (TPAMI 2018), as the paper uses them."""

import torch
from torch import Tensor, nn

from pinmem_core.models.backbones.base import BackboneFeatures
from pinmem_core.models.decoders.base import Decoder, conv_bn_relu, initialize, resize
from pinmem_core.models.speedups import conv_then_resize

_RATES = (6, 12, 18)  # at output stride 16
_LOW_DIM = 48


class DeepLabV3Plus(Decoder):
    """Atrous spatial pyramid pooling, and a decoder that fuses the backbone's fine feature.

    Args:
        low_channels: Channels of `BackboneFeatures.low`.
        top_channels: Channels of `BackboneFeatures.top`.
        output_stride: Stride of `BackboneFeatures.top`; it scales the rates of the pyramid.
        dim: Channels of the feature for the memory, and of the decoder.
        num_classes: Number of classes, K.
    """

    def __init__(
        self, low_channels: int, top_channels: int, output_stride: int, dim: int, num_classes: int
    ) -> None:
        super().__init__()
        self.pooled = conv_bn_relu(top_channels, dim)
        rates = [rate * 16 // output_stride for rate in _RATES]
        self.pyramid = nn.ModuleList(
            [
                conv_bn_relu(top_channels, dim),
                *(conv_bn_relu(top_channels, dim, kernel=3, dilation=rate) for rate in rates),
            ]
        )
        self.projection = conv_bn_relu((len(self.pyramid) + 1) * dim, dim)
        self.fine = conv_bn_relu(low_channels, _LOW_DIM)
        self.fusion = nn.Sequential(
            *conv_bn_relu(_LOW_DIM + dim, dim, kernel=3), *conv_bn_relu(dim, dim, kernel=3)
        )
        self.classifier = nn.Conv2d(dim, num_classes, 1)
        initialize(self)

    def project(self, features: BackboneFeatures) -> Tensor:
        """Return F, the pyramid over the backbone's top feature, projected to `dim` channels."""
        top = features.top
        pooled = self.pooled(top.mean(dim=(2, 3), keepdim=True))
        branches = [branch(top) for branch in self.pyramid]
        branches.insert(0, resize(pooled, top.shape[-2:]).to(branches[0].dtype))
        projected: Tensor = self.projection(torch.cat(branches, dim=1))
        return projected

    def decode(self, refined: Tensor, features: BackboneFeatures) -> Tensor:
        """Return logits at the resolution of the backbone's low feature."""
        logits: Tensor = self.classifier(self._fused(self.fine(features.low), refined))
        return logits

    def _fused(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Fuse both features at the resolution of the fine one."""
        if self.early and fine.dtype == coarse.dtype:
            conv = self.fusion[0]
            assert isinstance(conv, nn.Conv2d)
            mixed = conv_then_resize(conv, fine, coarse)
            fused: Tensor = self.fusion[1:](mixed)
        else:
            coarse = resize(coarse, fine.shape[-2:]).to(fine.dtype)  # half with autocast
            fused = self.fusion(torch.cat([fine, coarse], dim=1))
        return fused


_V2_RATES = (6, 12, 18, 24)  # for every output stride


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
            [conv_bn_relu(top_channels, dim, kernel=3, dilation=rate) for rate in _V2_RATES]
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


DECODERS = {"deeplabv2": DeepLabV2, "deeplabv3plus": DeepLabV3Plus}
