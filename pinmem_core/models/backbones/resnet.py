"""torchvision's ResNets (stride in the 3x3 convolution, 7x7 stem)."""

from collections.abc import Callable, Mapping
from functools import partial

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from pinmem_core.models.backbones.base import Backbone, dilate
from pinmem_core.models.weights import torchvision_weights

_DILATIONS: Mapping[int, tuple[int, int]] = {32: (1, 1), 16: (1, 2), 8: (2, 4)}
"""Dilation of layer3 and layer4 by output stride."""


class ResNet(Backbone):
    """A torchvision ResNet up to layer4.

    Args:
        name: Name of the network in torchvision, or "resnet10" with one basic block per stage.
        output_stride: Output stride, 8, 16 or 32; below 32 the last stages are dilated.
        early_stride: Whether layer2 has its stride in the first 1x1 convolution, as in DeepLabV2.
    """

    unused_weights = ("fc.",)

    def __init__(self, name: str, output_stride: int, *, early_stride: bool = False) -> None:
        super().__init__()
        self.name = name
        network = _resnet10() if name == "resnet10" else torchvision.models.get_model(name)
        self.conv1, self.bn1, self.relu = network.conv1, network.bn1, network.relu
        self.maxpool = network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        dilations = _DILATIONS[output_stride]
        for layer, dilation in zip((self.layer3, self.layer4), dilations, strict=True):
            if dilation > 1:
                dilate(layer, dilation)
        if early_stride:
            first = self.layer2[0]
            first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
        self.channels = [_out_channels(stage) for stage in self.stages()]
        self.strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features after layer1 to layer4."""
        features = [self.maxpool(self.relu(self.bn1(self.conv1(images))))]
        for stage in self.stages():
            features.append(stage(features[-1]))
        return features[1:]

    def stem_end(self) -> nn.Module:
        """Return the max pooling."""
        return self.maxpool

    def stages(self) -> list[nn.Module]:
        """Return layer1 to layer4."""
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def published(self, name: str, download: bool) -> Mapping[str, Tensor] | None:
        """Return torchvision's weights."""
        return torchvision_weights(self.name, name, download)


def _resnet10() -> torchvision.models.ResNet:
    return torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1])


def _out_channels(layer: nn.Module) -> int:
    return [part for part in layer.modules() if isinstance(part, nn.BatchNorm2d)][-1].num_features


BACKBONES: dict[str, Callable[..., Backbone]] = {
    "resnet10": partial(ResNet, "resnet10"),
    "resnet18": partial(ResNet, "resnet18"),
    "resnet50": partial(ResNet, "resnet50"),
    "resnet101": partial(ResNet, "resnet101"),
    "resnet101-v2": partial(ResNet, "resnet101", early_stride=True),
}
