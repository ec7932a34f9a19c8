"""torchvision's ResNets (stride in the 3x3 convolution, 7x7 stem)."""

from collections.abc import Callable, Mapping
from functools import partial

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from pinmem_core.models.backbones.base import Backbone, BackboneFeatures, dilate

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
        network = _resnet10() if name == "resnet10" else torchvision.models.get_model(name)
        self.conv1, self.bn1, self.relu = network.conv1, network.bn1, network.relu
        self.maxpool = network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        for layer, dilation in zip(
            (self.layer3, self.layer4), _DILATIONS[output_stride], strict=True
        ):
            if dilation > 1:
                dilate(layer, dilation)
        if early_stride:
            first = self.layer2[0]
            first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
        self.low_channels, self.aux_channels, self.top_channels = (
            _out_channels(layer) for layer in (self.layer1, self.layer3, self.layer4)
        )

    def forward(self, images: Tensor) -> BackboneFeatures:
        """Return the features after layer1, layer3 and layer4."""
        low = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        aux = self.layer3(self.layer2(low))
        return BackboneFeatures(low, aux, self.layer4(aux))


def _resnet10() -> torchvision.models.ResNet:
    return torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1])


def _out_channels(layer: nn.Module) -> int:
    last = [module for module in layer.modules() if isinstance(module, nn.BatchNorm2d)][-1]
    return last.num_features


BACKBONES: dict[str, Callable[[int], Backbone]] = {
    **{n: partial(ResNet, n) for n in ("resnet10", "resnet18", "resnet50", "resnet101")},
    "resnet101-v2": partial(ResNet, "resnet101", early_stride=True),
}
