"""A backbone of four convolutions: one file makes it known, and fast tests use it."""

from torch import Tensor, nn

from pinmem_core.models.backbones.base import Backbone, BackboneFeatures


def _stage(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class Tiny(Backbone):
    low_channels, aux_channels, top_channels = 8, 12, 16

    def __init__(self, output_stride: int) -> None:
        super().__init__()
        self.stem = _stage(3, 8, 2)
        self.stage1 = _stage(8, 8, 2)
        self.stage2 = _stage(8, 12, 2)
        self.stage3 = _stage(12, 16, output_stride // 8)

    def forward(self, images: Tensor) -> BackboneFeatures:
        low = self.stage1(self.stem(images))
        aux = self.stage2(low)
        return BackboneFeatures(low, aux, self.stage3(aux))


BACKBONES = {"tiny": Tiny}
