"""IBN-Net (Pan et al., ECCV 2018): instance norm in the early stages of a backbone.

Instance norm removes the mean and the contrast of each channel of an image, and with them much of
the style of a domain.
"""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from pinmem_core.errors import ConfigError
from pinmem_core.models.adapters.base import Adapter
from pinmem_core.models.backbones.base import Backbone, end_of
from pinmem_core.models.backbones.mobilenet import MobileNetV2
from pinmem_core.models.backbones.resnet import ResNet


class InstanceNorm(nn.GroupNorm):
    """Instance norm: y = w (x - mean) / sqrt(variance + eps) + b by image and channel.

    A map of one position, which `nn.InstanceNorm2d` refuses, becomes b.

    Args:
        channels: Number of channels C.
        affine: Whether w and b are learned; otherwise they are 1 and 0.
    """

    def __init__(self, channels: int, *, affine: bool = True) -> None:
        super().__init__(channels, channels, affine=affine)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class HalfInstanceNorm(nn.Module):
    """Instance norm of the first half of the channels, and batch norm of the others.

    Args:
        norm: Batch norm to replace; its scales, shifts and statistics are kept.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        half = norm.num_features // 2
        self.instance = _instance_norm_like(norm, slice(half))
        self.batch = nn.BatchNorm2d(norm.num_features - half, norm.eps, norm.momentum)
        self.batch.to(norm.weight)
        self.batch.load_state_dict(
            {k: v[half:] if v.ndim else v for k, v in norm.state_dict().items()}
        )

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        half = self.instance.num_channels
        return torch.cat([self.instance(input[:, :half]), self.batch(input[:, half:])], dim=1)


class NormalizedBasicBlock(BasicBlock):
    """A basic block with instance norm after the sum with its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(norm(residual(x) + shortcut(x))) of (N, C, H, W)."""
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        output: Tensor = self.relu(self.instance_norm(residual + shortcut))
        return output


class NormalizedBottleneck(Bottleneck):
    """A bottleneck with instance norm after the sum with its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(norm(residual(x) + shortcut(x))) of (N, C, H, W)."""
        inner = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        shortcut = x if self.downsample is None else self.downsample(x)
        output: Tensor = self.relu(self.instance_norm(self.bn3(self.conv3(inner)) + shortcut))
        return output


class IBN(Adapter):
    """Instance norm in a backbone with batch norm."""

    variant: Literal["a", "b"] = "b"
    """"a": half of the channels after the first convolution of each block of layer1 to layer3 of a
    ResNet. "b": in place of the stem's batch norm, and after the sum in the last block of layer1
    and of layer2, as RobustNet's `--wt_layer 0 0 4 4 4 0 0`, which tables call IBN; in MobileNetV2
    after the blocks 1, 6 and 10; elsewhere after the stem and the first two stages."""
    affine: bool = True
    """Learn a scale and a shift of each channel; ISW has none. Variant "a" always has them."""

    def insert(self, backbone: Backbone) -> None:
        """Insert the norms."""
        if not isinstance(backbone, ResNet):
            self._append(backbone)
        elif self.variant == "a":
            for layer in (backbone.layer1, backbone.layer2, backbone.layer3):
                for block in layer:
                    block.bn1 = HalfInstanceNorm(block.bn1)
        else:
            stem = backbone.bn1
            channels = stem.num_features
            backbone.bn1 = (
                _instance_norm_like(stem) if self.affine else InstanceNorm(channels, affine=False)
            )
            for layer in (backbone.layer1, backbone.layer2):
                block = layer[-1]
                basic = isinstance(block, BasicBlock)
                block.__class__ = NormalizedBasicBlock if basic else NormalizedBottleneck
                last = block.bn2 if basic else block.bn3
                block.instance_norm = InstanceNorm(last.num_features, affine=self.affine)

    def _append(self, backbone: Backbone) -> None:
        """Add the norms as `backbone.instance_norms`, after three modules."""
        if self.variant == "a":
            raise ConfigError(
                f"variant a of instance norm (ibn) needs a ResNet, not '{backbone.name}'.",
                "Use '--set model.backbone=resnet50', or another ResNet; or variant b.",
            )
        stages = backbone.stages()
        if len(stages) < 2 or not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules()):
            raise ConfigError(
                "instance norm (ibn) needs a backbone with batch norm and stages, "
                f"not '{backbone.name}'.",
                "Use '--set model.backbone=resnet50', or another one with batch norm.",
            )
        if isinstance(backbone, MobileNetV2):
            modules = [backbone.features[number] for number in (1, 6, 10)]
        else:
            ends = (end_of(backbone, stage) for stage in stages[:2])
            modules = [backbone.stem_end(), *ends]
        shapes = backbone.output_shapes(modules)
        norms = [InstanceNorm(shape[1], affine=self.affine) for shape in shapes]
        backbone.add_module("instance_norms", nn.ModuleList(norms).to(next(backbone.parameters())))
        for module, norm in zip(modules, norms, strict=True):
            module.register_forward_hook(partial(_normalized, norm=norm))


def _normalized(module: nn.Module, inputs: Any, output: Tensor, *, norm: InstanceNorm) -> Tensor:
    normalized: Tensor = norm(output)
    return normalized


def _instance_norm_like(norm: nn.BatchNorm2d, channels: slice = slice(None)) -> InstanceNorm:
    """Return an instance norm with the scales and shifts of some channels of a batch norm."""
    scales, shifts = norm.weight.detach()[channels], norm.bias.detach()[channels]
    instance = InstanceNorm(len(scales)).to(scales)
    instance.load_state_dict({"weight": scales, "bias": shifts})
    return instance


ADAPTERS = {"ibn": IBN}
