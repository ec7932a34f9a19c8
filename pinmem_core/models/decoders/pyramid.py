"""Decoders that fuse the features of all strides: SegFormer's all-MLP decoder and an FPN."""

import torch
from torch import Tensor, nn

from pinmem_core.models.decoders.base import Decoder, conv_bn_relu, initialize, resize


class SegFormer(Decoder):
    """Project each feature, concatenate them at the finest stride, and fuse them by a 1x1 map.

    Source: SegFormer (Xie et al., NeurIPS 2021), section 3.2. The memory reads the fused feature.

    Args:
        channels: Channels of the features.
        strides: Strides of the features.
        dim: Channels of the projections and of the fused feature.
        num_classes: Number of classes, K.
    """

    auxiliary = False

    def __init__(self, channels: list[int], strides: list[int], dim: int, num_classes: int) -> None:
        super().__init__()
        self.dim = dim
        self.projections = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in channels)
        self.fuse = conv_bn_relu(len(channels) * dim, dim)
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(dim, num_classes, 1))
        initialize(self)

    def project(self, features: list[Tensor]) -> Tensor:
        """Return the fused feature at the finest stride."""
        size = features[0].shape[-2:]
        projected = [
            resize(projection(feature), size)
            for projection, feature in zip(self.projections, features, strict=True)
        ]
        fused: Tensor = self.fuse(torch.cat(projected, dim=1))
        return fused

    def decode(self, refined: Tensor, features: list[Tensor]) -> Tensor:
        """Return logits at the resolution of `refined`."""
        logits: Tensor = self.classifier(refined)
        return logits


class FeaturePyramid(nn.Module):
    """Add each feature to the next finer one, and smooth the sums.

    Source: FPN (Lin et al., CVPR 2017), section 3.

    Args:
        channels: Channels of the features, from the finest to the coarsest.
        dim: Channels of the results.
    """

    def __init__(self, channels: list[int], dim: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in channels)
        self.smooth = nn.ModuleList(conv_bn_relu(dim, dim, 3) for _ in channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return maps (N, dim, ·, ·) of the resolutions of `features`."""
        sums = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        for fine in reversed(range(len(sums) - 1)):
            coarse = resize(sums[fine + 1], sums[fine].shape[-2:])
            sums[fine] = sums[fine] + coarse.to(sums[fine].dtype)  # half with autocast
        return [smooth(total) for smooth, total in zip(self.smooth, sums, strict=True)]


class FPN(Decoder):
    """A feature pyramid whose maps are averaged at the finest stride.

    Source: semantic FPN (Kirillov et al., CVPR 2019), with one convolution for each stride. The
    memory reads the average.

    Args:
        channels: Channels of the features.
        strides: Strides of the features.
        dim: Channels of the pyramid.
        num_classes: Number of classes, K.
    """

    auxiliary = False

    def __init__(self, channels: list[int], strides: list[int], dim: int, num_classes: int) -> None:
        super().__init__()
        self.dim = dim
        self.pyramid = FeaturePyramid(channels, dim)
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(dim, num_classes, 1))
        initialize(self)

    def project(self, features: list[Tensor]) -> Tensor:
        """Return the average of the pyramid's maps at the finest stride."""
        maps = self.pyramid(features)
        size = maps[0].shape[-2:]
        return torch.stack([resize(feature, size) for feature in maps]).mean(dim=0)

    def decode(self, refined: Tensor, features: list[Tensor]) -> Tensor:
        """Return logits at the resolution of `refined`."""
        logits: Tensor = self.classifier(refined)
        return logits


DECODERS = {"segformer": SegFormer, "fpn": FPN}
