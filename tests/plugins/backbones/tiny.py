"""A backbone of four convolutions: one file makes it known, and fast tests use it."""

from torch import Tensor, nn

from pinmem_core.models.backbones.base import Backbone


def _stage(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class Tiny(Backbone):
    name = "tiny"

    def __init__(self, output_stride: int) -> None:
        super().__init__()
        self.channels, self.strides = [8, 12, 16], [4, 8, output_stride]
        self.stem = _stage(3, 8, 2)
        self.stage1 = _stage(8, 8, 2)
        self.stage2 = _stage(8, 12, 2)
        self.stage3 = _stage(12, 16, output_stride // 8)

    def stages(self) -> list[nn.Module]:
        return [nn.Sequential(self.stem, self.stage1), self.stage2, self.stage3]

    def forward(self, images: Tensor) -> list[Tensor]:
        features = [images]
        for stage in self.stages():
            features.append(stage(features[-1]))
        return features[1:]


BACKBONES = {"tiny": Tiny}
